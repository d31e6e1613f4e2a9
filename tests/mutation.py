"""Valid input made invalid at random, from a seed, and what every program must do with it.

A fuzz test changes valid input in thousands of ways. Each case is a function of a random generator
that returns whether the input was refused, by an error that is meant; every other error is a
failure of the test, and so is input of which no change, or every one, is refused.
"""

import copy
import json
import random

import pytest

WORDS = [
    "",
    "x",
    "0",
    "-1",
    "nan",
    "None",
    "..",
    "../../x",
    "/etc/passwd",
    "<script>alert(1)</script>",
]
STRINGS = [
    *WORDS,
    "a" * 5000,
    "\0",
    "\x1b[31m",
    "\ud800",
    "é\u2028",
    "$\\frac",
    "[/x]",
    "plain",
    "%s",
]
NUMBERS = [0, -1, 1, 2**31, 2**63, 10**30, 1.5, 0.0, -2.0, 1e-300, 1e308]
CONSTANTS = [None, True, False, float("nan"), float("inf"), -float("inf")]
CONTAINERS = [[], {}, [[]], {"a": 1}, [1, "a"], {"": None}]
TEXTS = [
    "",
    "[" * 100_000,
    '{"a":' * 50_000,
    "null",
    "0",
    "NaN",
    "9" * 6000,
    '"\\ud800"',
    "\ufeff{}",
]


def many(short, long):
    """Parametrise a test with a number of cases: a few in every run, many in `make test-all`."""
    sizes = [short, pytest.param(long, marks=[pytest.mark.long, pytest.mark.timeout(1800)])]
    return pytest.mark.parametrize("num_cases", sizes)


def check_cases(target, num_cases, record_property, case):
    """Run a case for each seed; fail with one error of each kind, and its seed.

    Raises:
        ExceptionGroup: Of these errors.
    """
    failures, refused = {}, 0
    for seed in range(num_cases):
        try:
            refused += case(random.Random(f"{target} {seed}"))
        except Exception as error:  # noqa: BLE001  # all kinds are listed
            error.add_note(f"case {seed} of {target}")
            place = error.__traceback__
            while place.tb_next is not None:
                place = place.tb_next
            failures.setdefault((type(error), place.tb_frame.f_code, place.tb_lineno), error)
    record_property("fuzz", {"target": target, "cases": num_cases, "refused": refused})
    if failures:
        raise ExceptionGroup(f"{target}: {len(failures)} kinds of failures", [*failures.values()])
    assert 0 < refused < num_cases


def refusal(kinds, call):
    """The error with which a call ends, if it is of these kinds; `None` if it ends well."""
    try:
        call()
    except kinds as error:
        return error
    return None


def mutated_json(random, value):
    """The text of a JSON file, changed in one to three places, or in its bytes too."""
    if random.random() < 0.05:
        return random.choice(TEXTS).encode("utf-8", "surrogatepass")
    value = json.loads(json.dumps(value))
    for _ in range(random.randint(1, 3)):
        value = _changed(random, value)
    data = json.dumps(value, indent=2 if random.random() < 0.5 else None).encode()
    return mutated_bytes(random, data) if random.random() < 0.3 else data


def mutated_bytes(random, data):
    """Bytes changed in one to three places: cut, flipped, inserted, deleted or repeated."""
    for _ in range(random.randint(1, 3)):
        start = random.randint(0, len(data))
        end = min(len(data), start + random.choice([1, 1, 4, 100, 10_000]))
        kind = random.randrange(6)
        if kind == 0:
            data = data[:start]
        elif kind == 1 and data:
            place = start % len(data)
            data = (
                data[:place] + bytes([data[place] ^ 1 << random.randrange(8)]) + data[place + 1 :]
            )
        elif kind == 2:
            data = data[:start] + random.randbytes(random.choice([1, 4, 100])) + data[start:]
        elif kind == 3:
            data = data[:start] + data[end:]
        elif kind == 4:
            data = data[:end] + data[start:]
        else:
            data = data[:start] + bytes(end - start) + data[end:]
    return data


def mutated_text(random, text):
    """Text changed in one to three places."""
    for _ in range(random.randint(1, 3)):
        start = random.randint(0, len(text))
        end = min(len(text), start + random.choice([1, 1, 3, 20]))
        characters = random.choice([*STRINGS, *map(str, NUMBERS), *",:=@/?&%{}()[]\\'\"-+ \n\t"])
        text = random.choice(
            [
                text[:start] + characters + text[end:],
                text[:start] + characters + text[start:],
                text[:start] + text[end:],
                text[:end] + text[start:],
                text[:start],
            ]
        )
    return text


def contents(directory):
    """What is in all files below a directory, and where its links lead."""
    return {
        str(path.relative_to(directory)): path.readlink()
        if path.is_symlink()
        else path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_symlink() or path.is_file()
    }


def _changed(random, value):
    """Change one node of a tree of JSON values, chosen at random."""
    paths = list(_paths(value))
    path = random.choice(paths)
    if not path:
        return _other(random, value) if random.random() < 0.2 else value
    parent = value
    for key in path[:-1]:
        parent = parent[key]
    key, kind = path[-1], random.randrange(5)
    if kind == 0:
        del parent[key]
    elif kind == 1 and isinstance(parent, dict):
        parent[random.choice([*STRINGS, *parent])] = parent.pop(key)
    elif kind == 1:
        parent.insert(key, parent[key])
    elif kind == 2:  # what belongs somewhere else
        other = value
        for each in random.choice(paths):
            other = other[each]
        parent[key] = json.loads(json.dumps(other))
    else:
        parent[key] = _other(random, parent[key])
    return value


def _other(random, value):
    if isinstance(value, int | float) and not isinstance(value, bool) and random.random() < 0.5:
        return random.choice([-value, 10 * value, value + 1, value / 2, str(value)])
    # A copy: a container may be changed next, or be put into itself.
    return copy.deepcopy(random.choice(random.choice([STRINGS, NUMBERS, CONSTANTS, CONTAINERS])))


def _paths(value, path=()):
    yield path
    if isinstance(value, dict):
        for key, each in value.items():
            yield from _paths(each, (*path, key))
    elif isinstance(value, list):
        for i, each in enumerate(value):
            yield from _paths(each, (*path, i))
