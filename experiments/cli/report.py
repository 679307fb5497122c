"""`quantenv report`: runs and benchmarks as one HTML page and PNGs."""

from collections.abc import Sequence
from pathlib import Path

from experiments.options.console import announcements, results
from experiments.options.parsing import parse_options
from experiments.options.tools import ReportOptions
from experiments.reports.groups import group
from experiments.reports.interactive import require_plotly
from experiments.reports.known import learn
from experiments.reports.page import page
from experiments.reports.pictures import save_picture
from experiments.reports.sections import make_sections
from experiments.reports.sources import read_folders
from experiments.runs.progress import ProgressView
from quantenv.core.errors import QuantenvError
from quantenv.core.files import write_text


def main(arguments: Sequence[str]) -> int:
    """Writes a report.

    Args:
        arguments: The command line after ``report``.

    Returns:
        Exit code 0.

    Raises:
        QuantenvError: For a mistake in the options, a folder that is neither a run's nor a benchmark's, a damaged
            file, or a page that cannot be written.
    """
    options = parse_options(ReportOptions, "report", arguments)
    require_plotly()
    sources = read_folders(options.folders)
    groups = group(sources)
    settings = dict.fromkeys(case.setting for case in groups)
    say = announcements()
    known = {}
    for setting in settings:
        say.print(f"Looking at {setting.title} ...", markup=False)
        known[setting] = learn(setting, [case for case in groups if case.setting == setting], options.measure)
    output = Path(options.output)
    sections, short = make_sections(sources, groups, known, output.parent)
    figures = [figure for section in sections for figure in section.figures]
    folders = ", ".join(options.folders) if len(options.folders) <= 4 else f"{len(options.folders)} folders"
    about = f"{len(sources.searches):,} searches from {folders}."
    try:
        write_text(output, page("Quantization report", about, sections))
        with ProgressView(say, "pictures", len(figures)) as view:
            for done, figure in enumerate(figures, start=1):
                save_picture(figure, output.with_name(f"{output.stem}-{figure.key}.png"))
                view.show(done, figure.key)
    except OSError as error:
        raise QuantenvError(f"Cannot write {output}: {error.strerror}. Give another --output.") from error
    for sentence in short:
        results().print(sentence, markup=False)
    results().print(f"{output}, and {len(figures)} pictures beside it.", markup=False, soft_wrap=True)
    return 0
