"""Collectives are found in the text of a program, whatever calls them, and counted by branch."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from benchmarks.hlo import Collective, communication_paths

MESH = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))


def program(*lines, others=""):
    """Write a program of some instructions, and computations that they call."""
    body = "\n".join(f"  {line}" for line in lines)
    entry = f"ENTRY %main.1 (p: f32[8]) -> f32[8] {{\n{body}\n}}\n"
    return f"HloModule jit_step, is_scheduled=true\n\n{others}\n{entry}"


def computation(name, *lines):
    body = "\n".join(f"  {line}" for line in lines)
    return f"%{name} (p: f32[8]) -> f32[8] {{\n{body}\n}}\n\n"


def all_reduce(shape, name="reduce", channel=1):
    return f"%{name} = {shape} all-reduce(%x), channel_id={channel}, to_apply=%add"


ADD = computation("add", "ROOT %sum = f32[] add(%a, %b)")


@pytest.mark.parametrize(
    ("line", "kind", "size"),
    [
        (all_reduce("f32[16,4]{1,0}"), "all-reduce", 256),
        (
            "%g = bf16[16,4]{1,0:T(8,128)(2,1)S(1)} all-gather(%x), dimensions={0}",
            "all-gather",
            128,
        ),
        ("%s = f32[2,4]{1,0} reduce-scatter(%x), to_apply=%add", "reduce-scatter", 8 * 32),
        ("%p = f64[3]{0} collective-permute(%x)", "collective-permute", 24),
        ("ROOT %t = pred[8]{0} all-to-all(%x)", "all-to-all", 8),
        ("%d = f32[4]{0} all-gather-done(%start)", "all-gather", 16),
    ],
)
def test_kind_and_bytes_of_a_collective(line, kind, size):
    (path,) = communication_paths(program(line, others=ADD), 8)
    assert path.counts() == {kind: 1}
    assert path.bytes_of(kind) == path.total_bytes == size


def test_the_start_of_an_asynchronous_pair_does_not_count_again():
    start = "%start = (f32[1]{0}, f32[8]{0}) all-gather-start(%x), channel_id=2"
    done = "%done = f32[8]{0} all-gather-done(%start)"
    (path,) = communication_paths(program(start, done), 8)
    assert path.total_bytes == 32


def test_the_arrays_that_are_combined_into_one_are_told_apart():
    shape = "(f32[16,4]{1,0}, f32[1,8]{1,0}, /*index=2*/f32[])"
    (path,) = communication_paths(program(all_reduce(shape), others=ADD), 8)
    assert path.counts() == {"all-reduce": 1}
    by_rank = [path.bytes_of("all-reduce", (rank,)) for rank in (0, 1, 2)]
    assert by_rank == [4, 32, 256]


def test_what_is_no_collective_is_none():
    line = '%c = f32[8]{0} add(%x, %y), metadata={op_name="all-reduce(x)" stack_frame_id=1}'
    (path,) = communication_paths(program(line), 8)
    assert path.collectives == ()


def test_pieces_of_one_channel_are_one_collective():
    lines = [all_reduce("f32[8]{0}", "first", 3), all_reduce("f32[8]{0}", "second", 3)]
    (path,) = communication_paths(program(*lines, others=ADD), 8)
    assert path.counts() == {"all-reduce": 1}


def test_collectives_of_one_channel_and_different_kinds_are_two():
    gather = "%g = f32[8]{0} all-gather(%x), channel_id=3"
    (path,) = communication_paths(
        program(gather, all_reduce("f32[8]{0}", channel=3), others=ADD), 8
    )
    assert path.counts() == {"all-gather": 1, "all-reduce": 1}


def test_the_fusion_that_scatters_what_it_reduces_is_a_reduce_scatter():
    fused = computation("all-reduce-scatter.2", all_reduce("f32[8]{0}"))
    call = "%f = f32[1]{0} fusion(%x), kind=kCustom, calls=%all-reduce-scatter.2"
    (path,) = communication_paths(program(call, others=ADD + fused), 8)
    assert path.collectives == (Collective("reduce-scatter", ((8,),), (32,)),)


@pytest.mark.parametrize("indexed", [True, False])
def test_branches_that_communicate_differently_are_paths(indexed):
    others = ADD + computation("little", all_reduce("f32[2]{0}", channel=2))
    others += computation("much", all_reduce("f32[4]{0}", channel=3))
    called = (
        "branch_computations={%little, %much}"
        if indexed
        else "true_computation=%much, false_computation=%little"
    )
    text = program(
        all_reduce("f32[]"), f"%c = f32[] conditional(%i, %a, %b), {called}", others=others
    )
    paths = communication_paths(text, 8)
    assert [(path.branches, path.total_bytes) for path in paths] == [((0,), 4 + 8), ((1,), 4 + 16)]


def test_branches_that_communicate_the_same_are_one_path():
    others = ADD + computation("one", all_reduce("f32[2]{0}", channel=2))
    others += computation("other", all_reduce("f32[2]{0}", channel=3))
    text = program(
        "%c = f32[] conditional(%i, %a), branch_computations={%one, %other}", others=others
    )
    (path,) = communication_paths(text, 8)
    assert (path.branches, path.total_bytes) == ((), 8)


def test_a_conditional_in_a_branch_counts_with_its_heaviest_branch():
    others = ADD + computation("inner", all_reduce("f32[2]{0}")) + computation("nothing")
    nested = "%n = f32[] conditional(%i, %a), branch_computations={%nothing, %inner}"
    others += computation("outer", nested)
    text = program(
        "%c = f32[] conditional(%i, %a), branch_computations={%nothing, %outer}", others=others
    )
    assert [path.total_bytes for path in communication_paths(text, 8)] == [0, 8]


def test_a_loop_communicates_in_each_round():
    others = ADD + computation("body", all_reduce("f32[2]{0}")) + computation("going")
    loop = "%w = f32[] while(%x), condition=%going, body=%body"
    count = ', backend_config={"known_trip_count":{"n":"5"}}'
    (path,) = communication_paths(program(loop + count, others=others), 8)
    assert (path.counts(), path.total_bytes) == ({"all-reduce": 5}, 40)
    with pytest.raises(ValueError, match="loop of unknown length"):
        communication_paths(program(loop, others=others), 8)


def test_a_text_that_is_no_program_is_refused():
    with pytest.raises(ValueError, match=r"text must be a compiled program.*'nothing'"):
        communication_paths("nothing", 8)


# Programs that are compiled


def compiled(function, *shapes, out_spec):
    def sharding(spec):
        return NamedSharding(MESH, spec)

    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    jitted = jax.jit(
        function,
        in_shardings=(sharding(P("data")),) * len(shapes),
        out_shardings=sharding(out_spec),
    )
    return communication_paths(jitted.lower(*shapes).compile().as_text(), 8)


@pytest.mark.parametrize(
    ("function", "out_spec", "counts", "size"),
    [
        (lambda x: x, P(), {"all-gather": 1}, 16 * 8 * 4),
        (lambda x: x.sum(0), P(), {"all-reduce": 1}, 8 * 4),
        (lambda x: x, P(None, "data"), {"all-to-all": 1}, 16 * 4),
        (lambda x: 2 * x, P("data"), {}, 0),
    ],
)
def test_a_compiled_program_is_read(function, out_spec, counts, size):
    (path,) = compiled(function, (16, 8), out_spec=out_spec)
    assert path.counts() == counts
    assert path.total_bytes == size


def test_a_compiled_switch_is_read():
    def step(x, which):
        branches = [
            lambda x: x.sum(),
            lambda x: jnp.sin(x).sum(0).sum() + x[0, 0],
            lambda x: x[0, 0],
        ]
        return jax.lax.switch(which.sum().astype(int), branches, x)

    paths = compiled(step, (16, 8), (8,), out_spec=P())
    assert len(paths) > 1
    assert len({path.total_bytes for path in paths}) > 1
