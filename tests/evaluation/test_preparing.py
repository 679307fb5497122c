"""Where a task's prepared network comes from. Whatever it is, the calibration's numbers are its."""

import dataclasses
import os
import subprocess
import sys
from types import SimpleNamespace

import msgspec
import pytest
import torch

from quantenv.core.allocation import Allocation
from quantenv.core.errors import QuantenvError
from quantenv.evaluation import make_evaluator, make_pool, preparing
from quantenv.evaluation.base import Evaluation
from quantenv.evaluation.post_training import PTQEvaluator, evaluate_logits
from quantenv.evaluation.preparing import (
    bringing,
    calibrate_task,
    find_prepared,
    key_of,
    make_prepared,
    shipped_file,
    ships,
    split_digest,
)
from quantenv.evaluation.store.store import EvaluationStore
from quantenv.quantization.prepared import Reference, read_prepared, write_prepared
from quantenv.sensitivity.divergence import layer_sensitivity
from quantenv.tasks import get_task
from quantenv.tasks.digits import make_digits
from tests.sensitivity.conftest import small_task


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """The folder in which prepared networks are kept, beside a store of the test's own."""
    monkeypatch.setenv("QUANTENV_STORE", str(tmp_path / "evaluations.sqlite"))
    return tmp_path / "prepared"


@pytest.fixture
def made(monkeypatch):
    """Names of the tasks that are prepared from now on."""
    names, original = [], preparing.make_prepared
    monkeypatch.setattr(preparing, "make_prepared", lambda task: names.append(task.name) or original(task))
    return names


def files(folder):
    return sorted(folder.glob("*.safetensors"))


def changed(prepared):
    """The same with one scale doubled."""
    scale = prepared.tensors["sites/scale"].clone()
    scale[0, 7] *= 2
    return dataclasses.replace(prepared, tensors={**prepared.tensors, "sites/scale": scale})


def test_it_is_made_once_and_read_by_others(kept, made):
    first = calibrate_task(small_task())
    second = calibrate_task(small_task())
    assert made == ["small"]
    assert first.content_hash == second.content_hash
    (path,) = files(kept)
    assert read_prepared(path).content_hash == first.content_hash
    for layer in first.modules:
        assert torch.equal(first.rounded(layer.name, 3), second.rounded(layer.name, 3))
    calibrate_task(dataclasses.replace(small_task(), scheme="linear+bias"))
    calibrate_task(small_task(seed=1))
    assert len(files(kept)) == len(made) == 3


def test_channel_groups_share_what_was_prepared_of_whole_layers(kept, made):
    whole = small_task()
    grouped = dataclasses.replace(whole, channel_groups={"left": [[0, 2, 4], [1, 3, 5]]})
    assert calibrate_task(grouped).content_hash == calibrate_task(whole).content_hash
    assert made == ["small"]


def test_nothing_is_kept_where_the_store_is_off(tmp_path, monkeypatch, made):
    monkeypatch.setenv("QUANTENV_STORE", "off")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    hashes = {calibrate_task(small_task()).content_hash for _ in range(2)}
    assert len(hashes) == 1
    assert len(made) == 2
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_store_on_a_server_has_them_in_the_user_s_data_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("QUANTENV_STORE", "postgresql://user@host/database")
    monkeypatch.setattr(preparing, "data_dir", lambda: tmp_path)
    assert preparing.prepared_folder() == tmp_path / "prepared"


@pytest.mark.parametrize(
    "damage", [lambda content: content[:-1] + b"!", lambda content: b"", lambda content: content[:99]]
)
def test_a_damaged_file_is_moved_aside_and_prepared_anew(kept, made, damage, caplog):
    wanted = find_prepared(small_task()).content_hash
    (path,) = files(kept)
    path.write_bytes(damage(path.read_bytes()))
    with caplog.at_level("WARNING"):
        assert find_prepared(small_task()).content_hash == wanted
    assert "damaged" in caplog.text
    assert "prepared anew" in caplog.text
    assert path.with_suffix(".damaged").exists()
    assert len(made) == 2
    assert find_prepared(small_task()).content_hash == wanted
    assert len(made) == 2


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv("QUANTENV_STORE", str(tmp_path / "evaluations.sqlite"))
    (tmp_path / "prepared").write_text("")
    with pytest.raises(QuantenvError, match=r"Cannot keep the prepared network in .*Set QUANTENV_STORE"):
        calibrate_task(small_task())


def test_a_full_disk_is_an_error_and_leaves_nothing(kept, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(QuantenvError, match="No space left"):
        find_prepared(small_task())
    assert not files(kept)


def test_a_process_that_is_killed_while_it_writes_leaves_no_file_that_is_read(kept, made):
    program = (
        "import os; from quantenv.evaluation.preparing import find_prepared\n"
        "from tests.sensitivity.conftest import small_task\n"
        "os.replace = lambda *_: os._exit(9)\n"
        "find_prepared(small_task())\n"
    )
    assert subprocess.run([sys.executable, "-c", program], env=os.environ).returncode == 9
    assert not files(kept)
    find_prepared(small_task())
    assert made == ["small"]
    assert len(files(kept)) == 1


def test_what_a_task_brings_is_used_and_prepares_nothing(made):
    task = small_task()
    other = changed(make_prepared(task))
    mine, theirs = calibrate_task(task), calibrate_task(bringing(task, other))
    assert made == ["small"]
    assert theirs.content_hash == other.content_hash != mine.content_hash
    node = theirs.sites[0].node
    assert torch.equal(theirs.site_grids[node][8].scale, 2 * mine.site_grids[node][8].scale)


@pytest.mark.parametrize("other", [{"scheme": "linear+bias"}, {"name": "another", "scheme": "k-means"}])
def test_what_was_prepared_of_another_scheme_is_refused(other):
    task = small_task()
    foreign = make_prepared(dataclasses.replace(task, **other))
    with pytest.raises(QuantenvError) as refused:
        bringing(task, foreign)
    sentence = str(refused.value)
    assert f"made for task '{other.get('name', 'small')}' under scheme '{other['scheme']}'" in sentence
    assert "not 'small' under 'linear'" in sentence


def test_what_was_prepared_of_other_weights_is_refused():
    with pytest.raises(QuantenvError, match="weights or calibration images are others"):
        bringing(small_task(), make_prepared(small_task(seed=1)))


def test_workers_get_the_parent_s_and_prepare_none():
    task = small_task()
    task = bringing(task, changed(make_prepared(task)))
    allocations = [Allocation.make(task.layers, bits, 8) for bits in (2, 3, 8)]
    alone = make_evaluator("ptq-float", task, "off")
    with make_pool("ptq-float", task, "off", workers=2) as pool:
        assert pool.evaluate(allocations) == alone.evaluate(allocations)
        assert pool.identity == alone.identity


@pytest.mark.parametrize("evaluator", ["ptq", "finetune", "finetune-haq"])
def test_evaluations_of_two_are_known_by_two_identities(evaluator):
    task = small_task()
    one = make_prepared(task)
    identities = [make_evaluator(evaluator, bringing(task, each), "off").identity for each in (one, changed(one), one)]
    assert identities[0] == identities[2] != identities[1]


def test_evaluations_of_two_never_mix_in_a_store(tmp_path):
    task, store = small_task(), str(tmp_path / "evaluations.sqlite")
    allocations = [Allocation.make(task.layers, bits, 8) for bits in (2, 3, 8)]
    one = make_prepared(task)
    tasks = [bringing(task, each) for each in (one, changed(one))]
    stored = [make_evaluator("ptq", each, store).evaluate(allocations) for each in tasks]
    alone = [make_evaluator("ptq", each, "off").evaluate(allocations) for each in tasks]
    assert stored == alone
    assert stored[0] != stored[1]
    assert len(list(EvaluationStore(store).records())) == 2 * len(allocations)


def test_digits_ship_prepared(made):
    task = get_task("digits")
    shipped = read_prepared(shipped_file(task))
    assert shipped.about.key == key_of(task)
    assert shipped.about.task == "digits"
    assert ships(calibrate_task(make_digits()).prepared, task)
    assert not ships(changed(shipped), task)
    assert not made
    assert shipped_file(dataclasses.replace(task, scheme="linear")) is None
    assert shipped_file(small_task()) is None


def test_references_are_the_float_network_s():
    task = get_task("digits")
    for split, reference in find_prepared(task).about.references.items():
        with torch.no_grad():
            logits = task.network(task.splits[split].inputs).double()
        loss = torch.nn.functional.cross_entropy(logits, task.splits[split].labels)
        assert reference.loss == pytest.approx(float(loss), abs=1e-5)
        assert reference.samples == len(task.splits[split])
        assert abs(reference.correct - int((logits.argmax(1) == task.splits[split].labels).sum())) <= 1
        assert reference.loss == round(reference.loss, 6)
        assert reference.digest == split_digest(task.splits[split])


def test_the_reference_is_the_prepared_network_s():
    task = small_task()
    prepared = make_prepared(task)
    references = {"search": Reference(7, 40, 1.25, split_digest(task.splits["search"]))}
    about = msgspec.structs.replace(prepared.about, references=references)
    evaluator = PTQEvaluator(bringing(task, dataclasses.replace(prepared, about=about)))
    assert evaluator.reference == Evaluation(7, 40, 1.25)
    own = evaluator.float_evaluation("test")  # which it does not know
    known = prepared.about.references["test"]
    assert (own.correct, own.samples, own.loss) == (known.correct, known.samples, pytest.approx(known.loss, abs=1e-5))


@pytest.mark.parametrize("changed", ["inputs", "labels"])
def test_a_reference_counts_for_its_own_split_alone(kept, changed):
    first = small_task()
    assert PTQEvaluator(first).reference == PTQEvaluator(small_task()).reference
    split = first.splits["search"]
    values = {"inputs": split.inputs + 0.5} if changed == "inputs" else {"labels": (split.labels + 1) % 5}
    other = dataclasses.replace(first, splits={**first.splits, "search": dataclasses.replace(split, **values)})
    found = PTQEvaluator(other).reference
    assert len(files(kept)) == 1  # both have the same prepared network
    assert find_prepared(other).about.references["search"].digest == split_digest(split)
    expected = evaluate_logits(other.network, other.splits["search"])
    assert (found.correct, found.loss) == (expected.correct, pytest.approx(expected.loss, abs=1e-5))
    assert found != PTQEvaluator(first).reference


def test_a_network_that_puts_out_nan_on_a_split_has_no_reference_there():
    task = small_task()
    broken = SimpleNamespace(network=lambda inputs: torch.full((len(inputs), 5), torch.nan))
    assert preparing._reference(broken, task.splits["test"]) is None
    assert preparing._reference(task, task.splits["test"]).samples == 8


def test_the_same_evaluations_whether_it_was_made_or_read(kept):
    allocations = [Allocation.make(small_task().layers, bits, 4) for bits in (1, 2, 5, 8)]
    found = [make_evaluator("ptq-float", small_task(), "off").evaluate(allocations) for _ in range(2)]
    assert len(files(kept)) == 1
    assert found[0] == found[1]


def test_notes_are_said_again_when_it_is_read(kept, caplog):
    task = small_task()
    prepared = make_prepared(task)
    about = prepared.about
    write_prepared(
        dataclasses.replace(prepared, about=type(about)(key=about.key, notes=["Mind this."])),
        kept / preparing.file_name(task),
    )
    with caplog.at_level("WARNING"):
        calibrate_task(task)
    assert "Mind this." in caplog.text


def test_sensitivities_are_not_measured_where_the_file_has_them(cache, monkeypatch):
    from experiments.cli.prepare import with_sensitivities
    from quantenv.sensitivity import Settings, measure
    from quantenv.sensitivity.network import sensitivity_file

    task = small_task()
    measured = {kind: measure(task, kind) for kind in ("kl", "accuracy", "loss", "sqnr")}
    shown = layer_sensitivity(PTQEvaluator(task))
    prepared = with_sensitivities(task, make_prepared(task))
    sensitivity_file(task, Settings()).unlink()
    brought = bringing(task, prepared)
    monkeypatch.setattr("quantenv.sensitivity.deviations.all_logits", None)  # would fail
    monkeypatch.setattr("quantenv.sensitivity.divergence.all_logits", None)
    for kind, expected in measured.items():
        found = measure(brought, kind)
        assert (found.weights == expected.weights).all()
        assert (found.activations == expected.activations).all()
        assert (found.evaluations, found.identity) == (expected.evaluations, expected.identity)
    assert (layer_sensitivity(PTQEvaluator(brought)) == shown).all()
    with pytest.raises(TypeError):
        measure(brought, "kl", Settings(images=7))  # which nobody has measured


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("QUANTENV_CACHE", str(tmp_path / "cache"))
