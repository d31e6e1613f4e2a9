"""The checksum of arrays: every bit counts, the layout does not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from experiments.training.fingerprint import fingerprint


@pytest.mark.parametrize(
    "dtype", ["float32", "float16", "bfloat16", "float64", "int32", "uint8", "int64"]
)
def test_one_flipped_bit_anywhere_changes_it(dtype):
    with jax.enable_x64(True):
        array = np.array(jnp.arange(12).reshape(3, 4), dtype)
        before = int(fingerprint({"a": array}))
        seen = set()
        raw = array.view(np.uint8)
        for place in np.ndindex(raw.shape):
            for bit in range(8):
                raw[place] ^= 1 << bit
                seen.add(int(fingerprint({"a": array})))
                raw[place] ^= 1 << bit
        assert int(fingerprint({"a": array})) == before
    assert seen
    assert before not in seen


@pytest.mark.parametrize(
    "changed",
    [
        {"a": jnp.array([2.0, 1.0]), "b": jnp.zeros(3)},
        {"a": jnp.zeros(3), "b": jnp.array([1.0, 2.0])},
        {"a": jnp.array([1.0, 2.0]), "b": -jnp.zeros(3)},
        {"a": jnp.array([1.0, 2.0]), "b": jnp.zeros(3, bool).at[1].set(True)},
    ],
    ids=["exchanged entries", "exchanged leaves", "signs of zeros", "a boolean"],
)
def test_what_is_not_the_same_has_another(changed):
    assert fingerprint({"a": jnp.array([1.0, 2.0]), "b": jnp.zeros(3)}) != fingerprint(changed)


def test_keys_count():
    one, other = (fingerprint({"key": jax.random.key(seed)}) for seed in (0, 1))
    assert one != other


def test_it_does_not_depend_on_the_layout_over_devices(two_devices):
    array = jax.random.normal(jax.random.key(0), (6, 4))
    found = {
        int(fingerprint(jax.device_put(array, NamedSharding(two_devices, spec))))
        for spec in (P(), P("data"), P(None, "data"))
    }
    assert found == {int(fingerprint(array))}
