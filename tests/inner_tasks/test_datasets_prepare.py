"""Preparing data sets: downloads, manual files, and failures without a network."""

from __future__ import annotations

import contextlib
import glob
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest

from inner_tasks.datasets import Dataset, load_dataset, official, prepare, tfds_source
from learned_opt._src.errors import LearnedOptError, UserError
from tests.inner_tasks.tfds_fixture import CIFAR_CLASSES, random_splits, write_official, write_tfds
from tests.marks import slow

NAMES = ("mnist", "fashion_mnist", "cifar10")
SPLITS = {name: random_splits(name, seed=i) for i, name in enumerate(NAMES)}


@pytest.fixture(autouse=True)
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache folder for one test, no proxies, and no access to other machines."""
    monkeypatch.setenv("LEARNED_OPT_CACHE", str(tmp_path / "cache"))
    for variable in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(variable, raising=False)
        monkeypatch.delenv(variable.upper(), raising=False)
    resolve = socket.getaddrinfo

    def only_this_machine(host: str, *arguments: object, **keywords: object) -> object:
        if host not in ("127.0.0.1", "localhost"):
            raise socket.gaierror(-3, "Temporary failure in name resolution")
        return resolve(host, *arguments, **keywords)

    monkeypatch.setattr(socket, "getaddrinfo", only_this_machine)


@pytest.fixture
def downloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for each set with fake official files, and their digests as the expected ones."""
    for name in NAMES:
        sha256 = write_official(name, tmp_path / "downloads" / name, SPLITS[name])
        assert list(sha256) == list(official.OFFICIAL[name].sha256)
        sizes = tuple((tmp_path / "downloads" / name / file).stat().st_size for file in sha256)
        changed = official.OFFICIAL[name]._replace(sha256=sha256, sizes=sizes)
        monkeypatch.setitem(official.OFFICIAL, name, changed)
    return tmp_path / "downloads"


class Handler(SimpleHTTPRequestHandler):
    """Serves a folder; as a proxy, it uses the last part of the address."""

    asked: list[str] = []
    length_error = 0
    endless = False  # goes on with zeros after the file
    pause = 0.0  # seconds between two bytes

    def do_GET(self) -> None:
        self.asked.append(self.path)
        self.path = "/" + self.path.removeprefix("http://").split("/", 1)[1]
        with contextlib.suppress(ConnectionError):  # the client has had enough
            super().do_GET()

    def copyfile(self, source: BinaryIO, outputfile: BinaryIO) -> None:
        if self.pause:
            for byte in iter(lambda: source.read(1), b""):
                outputfile.write(byte)
                time.sleep(self.pause)
        else:
            super().copyfile(source, outputfile)
        while self.endless:
            outputfile.write(bytes(100_000))

    def send_header(self, keyword: str, value: str) -> None:
        if keyword == "Content-Length" and self.endless:
            return
        if keyword == "Content-Length":
            value = str(int(value) + self.length_error)
        super().send_header(keyword, value)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def server(downloads: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a server of the fake files, which replaces the official addresses."""
    monkeypatch.setattr(Handler, "asked", [])
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=downloads)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        for name in NAMES:
            changed = official.OFFICIAL[name]._replace(address=f"{address}/{name}/")
            monkeypatch.setitem(official.OFFICIAL, name, changed)
        yield address
        server.shutdown()


def assert_holds(dataset: Dataset, name: str) -> None:
    """Compare with the fake images in any order, because TFDS shuffles them."""

    def ordered(images: np.ndarray, labels: np.ndarray) -> np.ndarray:
        table = np.column_stack([images.reshape(len(labels), -1), labels])
        return table[np.lexsort(table.T)]

    got = {
        "train": [np.concatenate(pair) for pair in zip(dataset[0], dataset[1], strict=True)],
        "test": dataset.test,
    }
    for split, arrays in got.items():
        np.testing.assert_array_equal(ordered(*arrays), ordered(*SPLITS[name][split]))


def assert_explains(error: BaseException, name: str, data_dir: Path) -> None:
    message = str(error)
    for part in (name, f"'{data_dir}'", "--data-dir", "TFDS_DATA_DIR", "downloads/manual"):
        assert part in message
    assert "\n" not in message and message.count(". ") == 0 and message.endswith(".")


# --- With the official files ---


def test_official_files_are_those_of_tfds():
    from tensorflow_datasets.core.download.checksums import get_all_url_infos

    known = get_all_url_infos()
    for _, address, sha256, sizes in official.OFFICIAL.values():
        for (file, digest), size in zip(sha256.items(), sizes, strict=True):
            assert known[address + file].checksum == digest
            assert known[address + file].size == size
            assert known[address + file].filename == file


@pytest.mark.parametrize("name", NAMES)
def test_downloaded_and_prepared(name: str, server: str, tmp_path: Path, capfd):
    data_dir = tmp_path / "new" / "data"
    assert_holds(load_dataset(name, data_dir), name)
    output, errors = capfd.readouterr()
    assert output == ""
    assert f"Preparing {name}" in errors and "Reading" in errors and "80/80 images" in errors
    assert "Downloading" in errors
    for noise in ("OpenCV", "ensorFlow", "Generating", "Shuffling"):
        assert noise not in errors
    assert [path.name for path in data_dir.iterdir()] == [name]
    assert "tensorflow" not in sys.modules


@pytest.mark.parametrize("name", NAMES)
def test_tfds_itself_takes_the_copy_for_its_own(name: str, server: str, tmp_path: Path):
    import tensorflow_datasets as tfds

    load_dataset(name, tmp_path)
    assert tfds.builder(name, data_dir=tmp_path).is_prepared()
    source = tfds.data_source(name, split="train", data_dir=tmp_path, download=False)
    images, labels = SPLITS[name]["train"]
    assert len(source) == 60
    if name == "cifar10":
        assert tfds.builder(name, data_dir=tmp_path).info.features["label"].names == CIFAR_CLASSES
        for example in source:
            i = int(example["id"].decode().removeprefix("train_"))
            np.testing.assert_array_equal(example["image"], images[i])
            assert example["label"] == labels[i]


@pytest.mark.parametrize("folder", ["downloads/manual", "downloads/manual/{}"])
@pytest.mark.parametrize("name", NAMES)
def test_manual_files_are_taken_without_a_network(name: str, folder: str, downloads, tmp_path):
    data_dir = tmp_path / "data"
    shutil.copytree(downloads / name, data_dir / folder.format(name))
    assert_holds(load_dataset(name, data_dir), name)
    assert sorted(path.name for path in data_dir.iterdir()) == sorted(["downloads", name])


def test_manual_file_of_another_set_is_left_alone(server: str, downloads, tmp_path, capfd):
    data_dir = tmp_path / "data"
    manual = data_dir / "downloads" / "manual"
    shutil.copytree(downloads / "mnist", manual)
    wrong = manual / "train-images-idx3-ubyte.gz"
    assert_holds(load_dataset("fashion_mnist", data_dir), "fashion_mnist")
    assert f"Not used: '{wrong}'" in capfd.readouterr().err


def test_only_missing_files_are_downloaded(server: str, downloads: Path, tmp_path: Path):
    data_dir = tmp_path / "data"
    shutil.copytree(downloads / "mnist", data_dir / "downloads" / "manual" / "mnist")
    (data_dir / "downloads/manual/mnist/t10k-labels-idx1-ubyte.gz").unlink()
    assert_holds(load_dataset("mnist", data_dir), "mnist")
    assert set(Handler.asked) == {"/mnist/t10k-labels-idx1-ubyte.gz"}


def test_proxies_of_the_environment_are_used(server: str, tmp_path, monkeypatch):
    elsewhere = official.OFFICIAL["mnist"]._replace(address="http://nowhere.invalid/mnist/")
    monkeypatch.setitem(official.OFFICIAL, "mnist", elsewhere)
    monkeypatch.setenv("HTTP_PROXY", server)
    assert_holds(load_dataset("mnist", tmp_path), "mnist")
    assert Handler.asked[0] == "http://nowhere.invalid/mnist/train-images-idx3-ubyte.gz"


# --- Two processes at the same time ---


def test_slower_of_two_preparations_takes_the_copy_of_the_faster(server, tmp_path, monkeypatch):
    build = prepare._build

    def overtaken(name: str, *arguments: object) -> Path:
        made = build(name, *arguments)
        monkeypatch.setattr(prepare, "_build", build)
        prepare.prepare(name, tmp_path / "data")
        return made

    monkeypatch.setattr(prepare, "_build", overtaken)
    assert_holds(load_dataset("mnist", tmp_path / "data"), "mnist")
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["mnist"]
    assert [path.name for path in (tmp_path / "data" / "mnist").iterdir()] == ["3.0.1"]


def test_two_processes_at_once(server: str, tmp_path: Path):
    code = (
        "import sys; from inner_tasks.datasets import load_dataset, official;"
        f"official.OFFICIAL['mnist'] = official.Official(*{tuple(official.OFFICIAL['mnist'])!r});"
        "print(load_dataset('mnist', sys.argv[1]).test.labels.tolist())"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "data")]
    runs = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [run.communicate(timeout=60)[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0]
    expected = str(load_dataset("mnist", tmp_path / "data").test.labels.tolist())
    assert [output.strip() for output in outputs] == [expected] * 2
    assert len(list((tmp_path / "cache" / "datasets").iterdir())) == 1


# --- Without the official files ---


@pytest.mark.parametrize("name", NAMES)
def test_no_network(name: str, tmp_path: Path):
    data_dir = tmp_path / "some" / "data"
    with pytest.raises(UserError) as caught:
        load_dataset(name, data_dir)
    assert_explains(caught.value, name, data_dir)
    assert list(tmp_path.iterdir()) == []


def test_waiting_ends_within_ten_seconds():
    assert official._ANSWER_SECONDS < 9


def test_name_resolution_that_never_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    ended = threading.Event()
    monkeypatch.setattr(official, "_ANSWER_SECONDS", 0.3)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: ended.wait(30))
    with pytest.raises(UserError, match="did not respond") as caught:
        load_dataset("mnist", tmp_path / "data")
    ended.set()
    assert_explains(caught.value, "mnist", tmp_path / "data")


def test_server_that_accepts_and_never_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(official, "_ANSWER_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        changed = official.OFFICIAL["cifar10"]._replace(address=address)
        monkeypatch.setitem(official.OFFICIAL, "cifar10", changed)
        with pytest.raises(UserError, match="did not respond") as caught:
            load_dataset("cifar10", tmp_path / "data")
    assert_explains(caught.value, "cifar10", tmp_path / "data")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("silence", [True, False], ids=["stalls", "breaks off"])
def test_download_that_does_not_end_well(silence, server, downloads, tmp_path, monkeypatch):
    monkeypatch.setattr(official, "_SILENCE_SECONDS", 0.3)
    monkeypatch.setattr(Handler, "length_error", 1000)
    monkeypatch.setattr(Handler, "protocol_version", "HTTP/1.1" if silence else "HTTP/1.0")
    with pytest.raises(UserError, match="was interrupted") as caught:
        load_dataset("mnist", tmp_path / "data")
    assert_explains(caught.value, "mnist", tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_download_that_never_ends(server, downloads, tmp_path, monkeypatch):
    monkeypatch.setattr(Handler, "endless", True)
    size = official.OFFICIAL["mnist"].sizes[0]
    with pytest.raises(
        UserError, match=f"is not the official file .it is larger than {size:,} bytes"
    ) as caught:
        load_dataset("mnist", tmp_path / "data")
    assert_explains(caught.value, "mnist", tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_download_byte_by_byte(server, downloads, tmp_path, monkeypatch):
    """It would take minutes, although no byte takes long."""
    monkeypatch.setattr(official, "_SILENCE_SECONDS", 0.5)
    monkeypatch.setattr(Handler, "pause", 0.05)
    with pytest.raises(UserError, match="was interrupted .no progress in 0.5 s") as caught:
        load_dataset("mnist", tmp_path / "data")
    assert_explains(caught.value, "mnist", tmp_path / "data")
    assert not (tmp_path / "data").exists()


def start_slow_download(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> subprocess.Popen[str]:
    """A process in the middle of a download."""
    monkeypatch.setattr(Handler, "pause", 0.05)
    code = (
        "import sys; from inner_tasks.datasets import load_dataset, official;"
        f"official.OFFICIAL['mnist'] = official.Official(*{tuple(official.OFFICIAL['mnist'])!r});"
        "load_dataset('mnist', sys.argv[1])"
    )

    def files() -> set[str]:
        # Path.glob of Python 3.11 fails when a folder is removed while it looks.
        return set(glob.glob(f"{data_dir}/incomplete.*/*.gz"))

    before = files()
    run = subprocess.Popen([sys.executable, "-c", code, str(data_dir)], stderr=subprocess.PIPE, text=True)
    while not files() - before:
        assert run.poll() is None
        time.sleep(0.01)
    return run


@pytest.mark.parametrize("number", [signal.SIGTERM, slow(signal.SIGHUP)])
def test_a_signal_during_a_download_leaves_nothing_behind(number, server, downloads, tmp_path, monkeypatch):
    run = start_slow_download(tmp_path / "data", monkeypatch)
    run.send_signal(number)
    assert f"Stopped by {number.name} while" in run.communicate(timeout=60)[1]
    assert run.returncode == 128 + number and not (tmp_path / "data").exists()


def test_what_a_killed_process_left_behind_is_removed(server, downloads, tmp_path, monkeypatch):
    data = tmp_path / "data"
    killed = start_slow_download(data, monkeypatch)
    killed.kill()
    killed.communicate()
    (abandoned,) = data.iterdir()
    alive = start_slow_download(data, monkeypatch)  # removes it
    (used,) = data.iterdir()
    assert used != abandoned
    alive.send_signal(signal.SIGSTOP)
    monkeypatch.setattr(Handler, "pause", 0)
    load_dataset("mnist", data)  # does not remove the folder of a process that is alive
    assert {path.name for path in data.iterdir()} == {"mnist", used.name}
    alive.kill()
    alive.communicate()


def test_download_of_something_else(server: str, downloads: Path, tmp_path: Path):
    (downloads / "mnist" / "t10k-images-idx3-ubyte.gz").write_text("Please log in.")
    (tmp_path / "data").mkdir()
    with pytest.raises(UserError, match="t10k-images-idx3-ubyte.gz is not the official"):
        load_dataset("mnist", tmp_path / "data")
    assert list((tmp_path / "data").iterdir()) == []


def test_address_that_is_gone(server: str, downloads: Path, tmp_path: Path):
    shutil.rmtree(downloads / "cifar10")
    with pytest.raises(UserError, match="HTTP status 404"):
        load_dataset("cifar10", tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_data_folder_that_cannot_be_written(server: str, tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(LearnedOptError, match="Not a directory") as caught:
        load_dataset("mnist", tmp_path / "file" / "data")
    assert "--data-dir" in str(caught.value) and str(tmp_path / "file") in str(caught.value)


def test_full_disk_while_preparing(server: str, tmp_path: Path, monkeypatch):
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(prepare, "_build", full)
    with pytest.raises(LearnedOptError, match="No space left on device"):
        load_dataset("mnist", tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_prepared_copy_needs_no_network(tmp_path: Path):
    write_tfds("mnist", tmp_path, SPLITS["mnist"])
    assert tfds_source.find_prepared("mnist", tmp_path) == tmp_path / "mnist" / "3.0.1"
    assert_holds(load_dataset("mnist", tmp_path), "mnist")


def test_machine_without_any_network(tmp_path: Path):
    cut_off = ["unshare", "-rn"]
    try:
        subprocess.run([*cut_off, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no network namespaces here (unshare -rn)")
    code = (
        "import sys; from inner_tasks.datasets import load_dataset\n"
        "try: load_dataset('cifar10', sys.argv[1])\n"
        "except ValueError as error: print(error)"
    )
    command = [*cut_off, sys.executable, "-c", code, str(tmp_path / "data")]
    run = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert run.stderr == ""
    assert_explains(ValueError(run.stdout.strip()), "cifar10", tmp_path / "data")
