"""The layout of the DQN replay dataset: writing it, and reading what we or others have written.

Records are single observations in time order, cut into blocks N = 0, 1, ... A block is six gzipped arrays:
`$store$_observation_ckpt.N.gz` and the same of action, reward and terminal, each with one row per record, and
`add_count_ckpt.N.gz` and `invalid_range_ckpt.N.gz` of the ring buffer that the block is a copy of. The state after a
record is the next record. Where observations are stacked, every episode begins with stack - 1 records of zeros.

Our own blocks have a seventh file, `$store$_successor_ckpt.N.gz`: 1 for a record that only holds the observation after
a step that was cut, by a time limit or the end of the run. Such a record is no step of its own. For readers that do not
know this file, it has a terminal flag: so no stack reaches across, and the terminal flags divide the records into
episodes in any case. `dataset.json` beside the blocks says what they are.
"""

import contextlib
import gzip
import hashlib
import json
import os
import re
import shutil
import tempfile
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmark.jobs import read_json, require

FORMAT = 1
INFO = "dataset.json"
STORED = ("observation", "action", "reward", "terminal")
SUCCESSOR = "successor"
COUNTERS = ("add_count", "invalid_range")
BLOCKS = 50  # the default: the papers choose among this many
MOST_RECORDS = 1_000_000  # of a block
LEVEL = 6  # of compression


def file_name(name, number):
    return f"{name if name in COUNTERS else f'$store$_{name}'}_ckpt.{number}.gz"


# ----------------------------------------------------------------------------------------------------------- Writing


@contextlib.contextmanager
def new_folder(folder):
    """A temporary folder that takes the place of a new one when it is whole."""
    folder = Path(folder).absolute()
    require(not folder.exists(), f"{folder} exists already; remove it, or choose another folder")
    temporary = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        temporary.chmod(0o755)
        yield temporary
        temporary.rename(folder)
    except OSError as error:
        require(False, f"cannot write {error.filename or folder}: {error.strerror or error}")
    finally:
        if temporary:
            shutil.rmtree(temporary, ignore_errors=True)


def write_array(path, array):
    """A gzipped array, of the same bytes each time -> their SHA-256."""
    with open(path, "wb") as file:
        with gzip.GzipFile(filename="", mode="wb", compresslevel=LEVEL, fileobj=file, mtime=0) as zipped:
            np.lib.format.write_array(zipped, array, allow_pickle=False)
        file.flush()
        os.fsync(file.fileno())
    return sha256(path)


def sha256(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def invalid_range(cursor, size, stack):
    """Places in a ring whose next record or whose stack lies across the place that is written next.

    Dopamine's formula names one place more, whose stack is whole.
    """
    return (cursor - 1 + np.arange(stack)) % size


def write_dataset(folder, info, count, gather, block_records):
    """Writes `count` records in blocks and `info` about them. gather(first, last) -> some records, by name.

    The counters are those of a ring of block_records that is copied whenever it is full, and at the end, where it
    counts from its own beginning.
    """
    block_records = block_records or min(MOST_RECORDS, -(-count // BLOCKS))
    hashes = {}
    for number, first in enumerate(range(0, count, block_records)):
        last = min(first + block_records, count)
        full = last - first == block_records
        arrays = gather(first, last)
        arrays["add_count"] = np.array(last if full else last - first)
        arrays["invalid_range"] = invalid_range((last - first) % block_records, block_records, info["stack"])
        for name, array in arrays.items():
            path = folder / file_name(name, number)
            hashes[path.name] = write_array(path, array)
    info = {"format": FORMAT} | info | {"records": count, "block_records": block_records, "sha256": hashes}
    (folder / INFO).write_text(json.dumps(info, indent=1) + "\n")
    return info


# ----------------------------------------------------------------------------------------------------------- Reading


def read_info(folder, env_id=None):
    """What dataset.json says; {} for data without one. `env_id`: the task that it must be of."""
    folder = Path(folder)
    require(folder.is_dir(), f"there is no folder {folder}")
    if not (folder / INFO).exists():
        return {}
    info = read_json(folder / INFO)
    require(isinstance(info, dict), f"{folder / INFO} is damaged")
    known = info.get("format") == FORMAT
    require(known, f"{folder} has format {info.get('format')}, which this version does not know")
    same = env_id is None or info.get("env_id") == env_id
    require(same, f"{folder} holds data of {info.get('env_id')}, not of {env_id}")
    return info


def block_numbers(folder, info, wanted=None):
    """The numbers of the blocks to read, all or the wanted ones, with all their files there."""
    folder = Path(folder)
    names = {path.name for path in folder.iterdir()}
    found = {int(match[1]) for name in names | {*info.get("sha256", {})} if (match := pattern().fullmatch(name))}
    require(found, f"{folder} holds no block: no file named {file_name('observation', 'N')}")
    numbers = sorted(found if wanted is None else set(wanted))
    for number in numbers:
        require(number in found, f"{folder} has no block {number}")
        needed = [file_name(name, number) for name in (*STORED, *COUNTERS)]
        needed += [name for name in info.get("sha256", {}) if name == file_name(SUCCESSOR, number)]
        missing = [name for name in needed if name not in names]
        require(not missing, f"{folder} lacks {', '.join(missing)}")
    return numbers


def pattern():
    return re.compile(r".*_ckpt\.(\d+)\.gz")


def read_array(folder, name, number, info):
    """One file's array, whose bytes are those that dataset.json names."""
    path = Path(folder, file_name(name, number))
    known = info.get("sha256", {}).get(path.name)
    try:
        same = known is None or sha256(path) == known
        require(same, f"{path} is damaged or was changed: its SHA-256 is not the one in {INFO}")
        with gzip.open(path) as file:
            return np.lib.format.read_array(file, allow_pickle=False)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        require(False, f"{path} cannot be read: {error}")


def read_header(folder, name, number):
    """Shape and dtype of a file's array, without the array."""
    path = Path(folder, file_name(name, number))
    try:
        with gzip.open(path) as file:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = read(file)
            return shape, dtype
    except (OSError, EOFError, ValueError, zlib.error) as error:
        require(False, f"{path} cannot be read: {error}")


def time_order(add_count, size, cursor_before):
    """The places of a block, a copy of a ring, in time order -> places, the place that is written next.

    cursor_before: that of the block before, where the ring goes on; else None. DQN replay's own blocks are copied one
    record before they are full: what is missing there lies at the same place of the next block.
    """
    full = add_count >= size
    cursor = add_count % size if full else add_count
    cursor = cursor or size
    if cursor_before is None:
        cursor_before = cursor if full else size
    return np.concatenate([np.arange(cursor_before, size), np.arange(cursor)]), cursor


def goes_on(add_count, size, before):
    """Whether a block continues the ring of the one before it."""
    own_count = add_count <= size and before.add_count >= before.size - 1  # the last block's
    return add_count == before.add_count + size or own_count


def read(folder, blocks=None, stack=None, env_id=None, observations=True):
    """Blocks of a dataset as one, in time order -> arrays by name, of one row per record, and `stack`.

    blocks: their numbers; all if None. Blocks that follow one another are joined. stack: observations that are one
    state; if None, what dataset.json says, else 4 for pictures without channels and 1 for all others. observations:
    whether to read them, too.

    valid: the record is a step that may be drawn: its stack is whole and of one episode, and the state after it is the
        next record, or it is terminal, and then the next record is another episode's
    truncated: the step was cut; the next record, which is not valid, holds the state after it
    block: the number of its block
    """
    info = read_info(folder, env_id)
    numbers = block_numbers(folder, info, blocks)
    columns = {name: [] for name in ("action", "reward", "terminal", SUCCESSOR, "valid", "block", "starts")}
    shapes = {}
    places_of = {}
    before = ahead = None
    for number in numbers:
        add_count = read_array(folder, "add_count", number, info)
        require(add_count.size == 1, f"{file_name('add_count', number)} of {folder} is not one number")
        add_count = int(add_count.item())
        small = {name: read_array(folder, name, number, info) for name in ("action", "reward", "terminal")}
        size = check_block(folder, number, small, shapes)
        has_successor = Path(folder, file_name(SUCCESSOR, number)).exists()
        small[SUCCESSOR] = read_array(folder, SUCCESSOR, number, info) if has_successor else np.zeros(size, np.uint8)
        check_block(folder, number, small, shapes)
        joined = before is not None and before.number == number - 1 and goes_on(add_count, size, before)
        places, cursor = time_order(add_count, size, before.cursor if joined else None)
        seam = np.isin(places, read_array(folder, "invalid_range", number, info).astype(int))
        last = places == cursor - 1  # what lacks its next record; all others at the seam lack a part of their stack
        if joined:
            columns["valid"][-1] |= ahead
        ahead = seam & last & (small["terminal"][places] == 0)
        columns["valid"].append(~ahead & (~seam | last | joined))
        columns["block"].append(np.full(len(places), number))
        columns["starts"].append(np.arange(len(places)) == (-1 if joined else 0))
        for name, array in small.items():
            columns[name].append(array[places])
        places_of[number] = size, places
        before = Block(number=number, add_count=add_count, size=size, cursor=cursor)
    data = {name: np.concatenate(parts) for name, parts in columns.items()}
    if stack is None:
        stack = info.get("stack") or stack_of(read_header(folder, "observation", numbers[0]))
    starts = data.pop("starts")
    successor = data.pop(SUCCESSOR).astype(bool)
    data["terminal"] = data["terminal"].astype(bool) & ~successor
    next_is_here = np.append(~starts[1:], False)
    data["valid"] &= ~successor & whole(data["terminal"] | successor, starts, stack)
    data["valid"] &= data["terminal"] | next_is_here
    data["truncated"] = np.append(successor[1:], False) & next_is_here
    data["stack"] = np.array(stack)
    if observations:
        data["observation"] = read_observations(folder, info, places_of, shapes)
    return data


class Block(NamedTuple):
    number: int
    add_count: int
    size: int
    cursor: int


def read_observations(folder, info, places_of, shapes):
    """The observations of these places of the blocks, one block in memory beside the result."""
    result = None
    first = 0
    for number, (size, places) in places_of.items():
        array = read_array(folder, "observation", number, info)
        check_block(folder, number, {"observation": array}, shapes, size)
        if len(places_of) == 1 and np.array_equal(places, np.arange(len(array))):
            return array
        if result is None:
            count = sum(len(places) for _, places in places_of.values())
            result = np.empty((count, *array.shape[1:]), array.dtype)
        result[first : first + len(places)] = array[places]
        first += len(places)
    return result


def stack_of(header):
    shape, dtype = header
    return 4 if len(shape) == 3 and dtype == np.uint8 else 1


def check_block(folder, number, arrays, shapes, size=None):
    """Arrays of one block have as many records, and each is of the same shape and kind in all blocks -> records."""
    sizes = {name: len(array) if array.ndim else 0 for name, array in arrays.items()}
    sizes |= {"action": size} if size else {}
    lengths = ", ".join(f"{name} {size:,}" for name, size in sizes.items())
    fits = len({*sizes.values()}) == 1 and 0 not in sizes.values()
    require(fits, f"block {number} of {folder} has files of different lengths: {lengths}")
    for name, array in arrays.items():
        record = (array.shape[1:], array.dtype)
        first = shapes.setdefault(name, record)
        require(record == first, f"block {number} of {folder}: {name} is {record}, in other blocks {first}")
        flat = name not in ("reward", "terminal") or array.ndim == 1
        require(flat, f"block {number} of {folder}: {name} has the shape {array.shape}, not one number a record")
    return next(iter(sizes.values()))


def whole(ends, starts, stack):
    """Whether the stack that ends with a record is of one episode, or of one episode and the zeros before it."""
    index = np.arange(len(ends))
    begins = starts | np.append(False, ends[:-1])
    first = np.maximum.accumulate(np.where(begins, index, 0))
    return index - first >= stack - 1


def transitions(data, index=None):
    """What may be drawn from `read`'s arrays, or these of it, with states and next states as an agent sees them."""
    if index is None:
        index = np.flatnonzero(data["valid"])
    after = np.minimum(index + 1, len(data["valid"]) - 1)
    next_obs = stacked(data, after)
    next_obs[data["terminal"][index]] = 0  # another episode's: nobody's next state
    names = ("action", "reward", "terminal", "truncated")
    return {"obs": stacked(data, index), "next_obs": next_obs} | {name: data[name][index] for name in names}


def stacked(data, index):
    """States: (..., stack, *shape) of an observation, or (..., *shape) where one observation is a state."""
    stack = int(data["stack"])
    if stack == 1:
        return data["observation"][index]
    return data["observation"][index[..., None] + np.arange(1 - stack, 1)]
