import pytest

from quantenv.core.files import cache_dir, check_place, content_hash, write_atomically, write_text


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file.txt"
    write_text(path, "old")

    def fail(file):
        file.write(b"half")
        raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        write_atomically(path, fail)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_hash_separates_its_parts():
    assert content_hash(["ab", "c"]) != content_hash(["a", "bc"])
    assert content_hash(["a"]) == content_hash([b"a"])


def test_cache_folder_can_be_moved(monkeypatch, tmp_path):
    monkeypatch.setenv("QUANTENV_CACHE", str(tmp_path))
    assert cache_dir() == tmp_path


def test_a_place_is_checked_and_left_as_it_was(tmp_path):
    check_place(tmp_path / "a" / "b" / "file")
    (tmp_path / "file").touch()
    for wrong in (tmp_path, tmp_path / "file" / "x", tmp_path / "a" / ("x" * 300)):
        with pytest.raises(OSError) as caught:  # noqa: PT011
            check_place(wrong)
        assert caught.value.filename == str(wrong)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
