"""Read text files, plain or gzipped, in UTF-8, and never more of one than fits into memory."""

import gzip
import zlib
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from io import BufferedReader, TextIOWrapper
from pathlib import Path

from retcon.errors import InvalidData

# Bytes of a file that is read whole, uncompressed: ten times the largest published set of facts.
MOST = 2**29
# Characters of one line of a file that is read line by line.
LONGEST = 2**26

_DAMAGED = (UnicodeDecodeError, gzip.BadGzipFile, EOFError, zlib.error)


def read_text(path: Path) -> str:
    """The whole of a text file, uncompressed where its name ends in .gz; lines end in a newline.

    Raises:
        InvalidData: there is no such file, it is damaged, no text in UTF-8, or larger than `MOST`.
    """
    with _readable(path), _opened(path) as stream:
        content = stream.read(MOST + 1)
        if len(content) > MOST:
            raise InvalidData(
                f"{path} holds more than {MOST >> 20} MiB of text"
                f"{', uncompressed' if _zipped(path) else ''}: so much is not read into memory. "
                f"Split it into several files."
            )
        return content.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")


def read_lines(path: Path) -> Iterator[str]:
    """The lines of a text file of any size, one at a time; uncompressed as by `read_text`.

    Raises:
        InvalidData: as `read_text`, or a line is longer than `LONGEST`.
    """
    with _readable(path), TextIOWrapper(_opened(path), encoding="utf-8-sig") as stream:
        number = 0
        while line := stream.readline(LONGEST + 1):
            number += 1
            if len(line) > LONGEST:
                raise InvalidData(
                    f"{path}, line {number}: longer than {LONGEST >> 20} million characters. "
                    f"Break it into lines."
                )
            yield line.removesuffix("\n")


def _zipped(path: Path) -> bool:
    return path.suffix == ".gz"


def _opened(path: Path) -> gzip.GzipFile | BufferedReader:
    return gzip.open(path) if _zipped(path) else path.open("rb")


@contextmanager
def _readable(path: Path) -> Generator[None, None, None]:
    """Turn errors of reading a file into `InvalidData` with an explanation."""
    if not path.is_file():
        if path.is_dir():
            raise InvalidData(f"{str(path)!r} is a folder. Name a file in it.")
        raise InvalidData(f"There is no file {str(path)!r}. Check its name, or where you are.")
    try:
        yield
    except _DAMAGED as error:
        encoded = isinstance(error, UnicodeDecodeError)
        remedy = "Save it as UTF-8." if encoded else "Fetch it again, or name it without .gz."
        raise InvalidData(f"{path} is damaged or not a text file: {error}. {remedy}") from error
    except OSError as error:
        raise InvalidData(f"{path} cannot be read: {error.strerror or error}.") from error
