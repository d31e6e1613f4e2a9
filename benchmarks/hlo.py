"""What the devices of a compiled program tell one another: its collectives, and their bytes.

They are read off the program's text, `jax.jit(f).lower(...).compile().as_text()`: the partitioner
puts collectives in, later passes merge, combine and move them, and what is left is what runs.

A program that chooses between branches has one `Path` for each. Conditionals inside of a branch
count with their heaviest branch, so that a path is an upper bound there.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "collective-permute", "all-to-all")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective operation.

    Attributes:
        kind: One of `KINDS`.
        shapes: The shapes of the arrays that it carries: the compiler combines several into one.
        sizes: Their bytes. That is what is summed or moved, whole: the result of an all-reduce, of
            an all-gather, of an all-to-all and of a permutation, the operand of a reduce-scatter.
        channel: The compiler's number for it, by which the pieces of one collective are known: the
            TPU's compiler spreads a gather over several fusions. Collectives of different kinds may
            share a number. `None` for one of a loop's rounds.
    """

    kind: str
    shapes: tuple[tuple[int, ...], ...]
    sizes: tuple[int, ...]
    channel: int | None = dataclasses.field(default=None, compare=False)


@dataclasses.dataclass(frozen=True)
class Path:
    """What is communicated on one way through a program.

    Attributes:
        branches: The branch that is taken of each conditional whose branches differ in what they
            communicate, in the order of the program.
        collectives: The collectives that run, those of a loop as often as it goes round.
    """

    branches: tuple[int, ...]
    collectives: tuple[Collective, ...]

    @property
    def total_bytes(self) -> int:
        """The bytes of all arrays."""
        return sum(sum(collective.sizes) for collective in self.collectives)

    def bytes_of(self, kind: str, ranks: Collection[int] | None = None) -> int:
        """Sum the bytes of one kind of collectives.

        Args:
            kind: One of `KINDS`.
            ranks: How many axes an array may have, those of length one not counted; `None` for
                any number.

        Returns:
            Bytes.
        """
        return sum(
            size
            for collective in self.collectives
            if collective.kind == kind
            for shape, size in zip(collective.shapes, collective.sizes, strict=True)
            if ranks is None or sum(length > 1 for length in shape) in ranks
        )

    def counts(self) -> dict[str, int]:
        """Count the collectives by kind.

        Returns:
            Numbers for the kinds that occur.
        """
        return dict(collections.Counter(collective.kind for collective in self.collectives))


def communication_paths(text: str, num_devices: int) -> list[Path]:
    """Read the collectives off a program, for each way through its outer conditionals.

    Args:
        text: The text of a compiled program.
        num_devices: How many devices each collective joins.

    Returns:
        The ways that differ in what they communicate; one for a program without conditionals.

    Raises:
        ValueError: If the text is no program, or communicates in a loop of unknown length.
    """
    program = dict(_computations(text))
    entry = next((name for name, each in program.items() if each.is_entry), None)
    if entry is None:
        message = f"text must be a compiled program; it has no entry computation: {text[:60]!r}"
        raise ValueError(message)
    return [
        Path(path.branches, _one_of_each_channel(path.collectives))
        for path in _paths(entry, program, num_devices)
    ]


@dataclasses.dataclass(frozen=True)
class _Computation:
    is_entry: bool
    instructions: tuple[str, ...]


# A computation begins in the first column, an instruction is indented.
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?[\w.\-]+ = (?P<type>.*?) (?P<opcode>[a-z][a-z\-]*)\(")
_ARRAY = re.compile(r"\b(pred|bf16|[suf]\d+\w*|c64|c128)\[([\d,]*)\]")
_CALLED = re.compile(r"\b(?:calls|to_apply|body|condition)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"\bbranch_computations=\{([^}]*)\}")
_TRUE_OR_FALSE = re.compile(r"\b(true|false)_computation=%?([\w.\-]+)")
_CHANNEL = re.compile(r"\bchannel_id=(\d+)")
_TRIP_COUNT = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_SCATTERING_FUSION = "all-reduce-scatter"  # the TPU compiler's form of a reduce-scatter


def _computations(text: str) -> Iterator[tuple[str, _Computation]]:
    name, is_entry, instructions = "", False, []
    for line in text.splitlines():
        header = _HEADER.match(line)
        if header is not None:
            is_entry, name, instructions = header[1] is not None, header[2], []
        elif line.startswith("}"):
            yield name, _Computation(is_entry, tuple(instructions))
        else:
            instructions.append(line)


def _paths(name: str, program: Mapping[str, _Computation], num_devices: int) -> list[Path]:
    paths = [Path((), ())]
    for line in program[name].instructions:
        collective = _collective(name, line, num_devices)
        if collective is not None:
            following = [Path((), (collective,))]
        elif branches := _branches(line):
            heaviest = [
                max(_paths(branch, program, num_devices), key=lambda path: path.total_bytes)
                for branch in branches
            ]
            following = _alternatives(heaviest)
        else:
            following = [Path((), ())]
            for called in _CALLED.findall(line):
                following = _one_after_the_other(following, _paths(called, program, num_devices))
            if " while(" in line:
                following = [_repeated(path, line) for path in following]
        paths = _one_after_the_other(paths, following)
    return paths


def _one_after_the_other(paths: Sequence[Path], following: Sequence[Path]) -> list[Path]:
    return [
        Path(first.branches + then.branches, first.collectives + then.collectives)
        for first in paths
        for then in following
    ]


def _alternatives(branches: Sequence[Path]) -> list[Path]:
    """Return the paths through a conditional: one, if all branches communicate the same."""
    if len({_contents(path) for path in branches}) == 1:
        return [Path((), branches[0].collectives)]
    return [Path((index,), path.collectives) for index, path in enumerate(branches)]


def _contents(path: Path) -> tuple[tuple[str, tuple[int, ...]], ...]:
    return tuple(sorted((each.kind, each.sizes) for each in path.collectives))


def _branches(line: str) -> list[str]:
    """Name the computations of a conditional, in the order of the values that lead to them."""
    listed = _BRANCHES.search(line)
    if listed is not None:
        return [each.strip().lstrip("%") for each in listed[1].split(",")]
    named = dict(_TRUE_OR_FALSE.findall(line))
    return [named["false"], named["true"]] if named else []


def _repeated(path: Path, line: str) -> Path:
    if not path.collectives:
        return path
    rounds = _TRIP_COUNT.search(line)
    if rounds is None:
        message = f"there are collectives in a loop of unknown length: {line.strip()[:120]}"
        raise ValueError(message)
    of_a_round = tuple(
        dataclasses.replace(each, channel=None) for each in _one_of_each_channel(path.collectives)
    )
    return Path(path.branches, of_a_round * int(rounds[1]))


def _one_of_each_channel(collectives: Sequence[Collective]) -> tuple[Collective, ...]:
    first = {(each, each.channel): each for each in reversed(collectives)}
    return tuple(
        each for each in collectives if each.channel is None or first[each, each.channel] is each
    )


def _collective(computation: str, line: str, num_devices: int) -> Collective | None:
    instruction = _INSTRUCTION.match(line)
    if instruction is None:
        return None
    # Of an asynchronous pair the end is counted, whose type is that of the result alone.
    kind = instruction["opcode"].removesuffix("-done")
    if kind not in KINDS:
        return None
    arrays = _ARRAY.findall(instruction["type"])
    shapes = tuple(tuple(map(int, filter(None, dims.split(",")))) for _, dims in arrays)
    sizes = tuple(
        _item_bytes(dtype) * math.prod(shape)
        for (dtype, _), shape in zip(arrays, shapes, strict=True)
    )
    if kind == "reduce-scatter":
        sizes = tuple(num_devices * size for size in sizes)
    if kind == "all-reduce" and computation.startswith(_SCATTERING_FUSION):
        kind = "reduce-scatter"
    channel = _CHANNEL.search(line)
    return Collective(kind, shapes, sizes, None if channel is None else int(channel[1]))


def _item_bytes(dtype: str) -> int:
    bits = re.search(r"\d+", dtype)
    return 1 if bits is None else -(-int(bits[0]) // 8)  # without a number: pred
