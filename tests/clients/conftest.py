from tests.clients.installed import IGNORED

collect_ignore = IGNORED
