"""The official files of each data set: names and digests, where to look for them, how to download them."""

from __future__ import annotations

import contextlib
import hashlib
import queue
import threading
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from inner_tasks.datasets.display import progress_bar, say

if TYPE_CHECKING:
    import requests

_ANSWER_SECONDS = 8.0  # for a connection and the header of the response, including name resolution
_SILENCE_SECONDS = 30.0  # between two pieces of a file
_PIECE = 2**15  # bytes


class Official(NamedTuple):
    """The files from which a set is prepared. They are the same as in TFDS (a test compares them)."""

    images: int  # train and test together
    address: str  # ends in a slash
    sha256: dict[str, str]  # by file name
    sizes: tuple[int, ...]  # bytes of each file


OFFICIAL: dict[str, Official] = {
    "mnist": Official(
        70_000,
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
        {
            "train-images-idx3-ubyte.gz": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            "train-labels-idx1-ubyte.gz": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
            "t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
            "t10k-labels-idx1-ubyte.gz": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        },
        (9912422, 28881, 1648877, 4542),
    ),
    "fashion_mnist": Official(
        70_000,
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        {
            "train-images-idx3-ubyte.gz": "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            "train-labels-idx1-ubyte.gz": "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
            "t10k-images-idx3-ubyte.gz": "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
            "t10k-labels-idx1-ubyte.gz": "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
        },
        (26421880, 29515, 4422102, 5148),
    ),
    "cifar10": Official(
        60_000,
        "https://www.cs.toronto.edu/~kriz/",
        {
            "cifar-10-binary.tar.gz": "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
        },
        (170052171,),
    ),
}


class DownloadError(Exception):
    """A file cannot be downloaded; the message gives its address and the reason."""


def find_manual(name: str, data_dir: Path) -> dict[str, Path]:
    """Find the official files of a set that the user has put in the manual folders.

    `<data_dir>/downloads/manual` is TFDS's folder. Its subfolder `<name>` is searched too, because the files
    of MNIST and Fashion-MNIST have the same names.

    Returns:
        Paths by file name, for the files with the official SHA-256.
    """
    found = {}
    manual = data_dir / "downloads" / "manual"
    official = OFFICIAL[name].sha256
    for path in (folder / file for folder in (manual, manual / name) for file in official):
        if path.is_file():
            with path.open("rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            if sha256 == official[path.name]:
                found[path.name] = path
            else:
                say(f"Not used: '{path}' is not the official file of {name} (SHA-256 differs).")
    return found


def open_url(url: str) -> requests.Response:
    """Send a request to an address, through the proxies set in the environment.

    Raises:
        DownloadError: there is no successful response within 8 seconds.
    """
    import requests  # imported here, because only downloads need it

    # In a thread, because the timeouts of requests cover neither name resolution nor several
    # addresses of one name. It is a daemon thread, so that it does not delay the end of the program.
    outcome: queue.SimpleQueue[requests.Response | Exception] = queue.SimpleQueue()

    def get() -> None:
        try:
            outcome.put(requests.get(url, stream=True, timeout=_SILENCE_SECONDS))
        except Exception as error:
            outcome.put(error)

    threading.Thread(target=get, daemon=True).start()
    try:
        answer = outcome.get(timeout=_ANSWER_SECONDS)
    except queue.Empty:
        raise DownloadError(f"{url} did not respond within {_ANSWER_SECONDS:.0f} s") from None
    if isinstance(answer, Exception):
        raise DownloadError(f"{url} cannot be reached ({type(answer).__name__})") from answer
    if answer.status_code != requests.codes.ok:
        raise DownloadError(f"{url} responded with HTTP status {answer.status_code}")
    return answer


def download(url: str, sha256: str, size: int, folder: Path) -> Path:
    """Download a file, showing progress.

    Args:
        url: address of the file.
        sha256: hexadecimal digest of the file.
        size: its number of bytes; no more are received.
        folder: target folder; the file is named after the last part of its address.

    Raises:
        DownloadError: the file cannot be downloaded, or the server sent a different one.
    """
    path = folder / url.rsplit("/", 1)[1]
    digest = hashlib.sha256()
    left = size
    with (
        contextlib.closing(_pieces(url)) as pieces,
        path.open("wb") as file,
        progress_bar(f"Downloading {path.name}", size / 1e6, "MB") as advance,
    ):
        for piece in pieces:
            left -= len(piece)
            if left < 0:
                raise DownloadError(f"{url} is not the official file (it is larger than {size:,} bytes)")
            digest.update(piece)
            file.write(piece)
            advance(len(piece) / 1e6)
    if digest.hexdigest() != sha256:
        raise DownloadError(f"{url} is not the official file (SHA-256 differs)")
    return path


def _pieces(url: str) -> Generator[bytes, None, None]:
    """The content of an address, in pieces that each arrive within 30 seconds.

    Raises:
        DownloadError: there is no response, the connection broke off, or there was too little progress.
    """
    response = open_url(url)
    pieces: queue.SimpleQueue[bytes | Exception | None] = queue.SimpleQueue()
    enough = threading.Event()

    # In a thread, because the timeout of requests starts anew with every byte. Only the thread closes the
    # response: closing waits for a read that is in progress.
    def receive() -> None:
        with response:
            try:
                for piece in response.iter_content(_PIECE):
                    pieces.put(piece)
                    if enough.is_set():
                        return
                pieces.put(None)
            except Exception as error:
                pieces.put(error)

    threading.Thread(target=receive, daemon=True).start()
    try:
        while (piece := pieces.get(timeout=_SILENCE_SECONDS)) is not None:
            if isinstance(piece, Exception):
                raise DownloadError(f"{url} was interrupted ({type(piece).__name__})") from piece
            yield piece
    except queue.Empty:
        raise DownloadError(f"{url} was interrupted (no progress in {_SILENCE_SECONDS:g} s)") from None
    finally:
        enough.set()
