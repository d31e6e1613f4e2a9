"""Which channels go, what is left of them, and that nothing is missed that is gone."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.errors import SettingError
from experiments.pruning.masks import (
    Fate,
    choose_fates,
    num_weights,
    prune,
    weight_masks,
)
from experiments.pruning.sensitivity import chance, convolutions, magnitude

KEPT, IMPLANTED, PRUNED = Fate.KEPT, Fate.IMPLANTED, Fate.PRUNED
SIZES = [(0.8, 0.0), (0.5, 0.0), (0.5, 0.3), (0.2, 0.2), (0.4, 1.0)]


def one_layer(scores):
    """Scores and kernels of a network that is a stem alone, of 18 weights a channel."""
    return {"stem_conv": np.array(scores)}, {"stem_conv": np.ones((3, 3, 2, len(scores)))}


def random_fates(params, keep, implant, seed=0):
    kernels = convolutions(params)
    return choose_fates(chance(seed, kernels), kernels, keep, implant)


@pytest.mark.parametrize(
    ("keep", "implant", "fates"),
    [
        (1.0, 0.0, [KEPT, KEPT, KEPT, KEPT, KEPT]),
        (0.6, 0.0, [KEPT, PRUNED, KEPT, PRUNED, KEPT]),
        (0.59, 0.0, [PRUNED, PRUNED, KEPT, PRUNED, KEPT]),
        # 2 + 2 of 90 weights are those of two implants, whose score is above that of the pruned.
        (0.6, 0.5, [IMPLANTED, PRUNED, KEPT, PRUNED, KEPT]),
        (0.3, 0.5, [IMPLANTED, PRUNED, IMPLANTED, PRUNED, KEPT]),
        (0.3, 1.0, [IMPLANTED] * 4 + [KEPT]),
    ],
)
def test_the_lowest_scores_go_first_and_implants_are_the_highest_of_them(keep, implant, fates):
    scores, kernels = one_layer([3.0, -1.0, 4.0, 2.0, 5.0])
    np.testing.assert_array_equal(choose_fates(scores, kernels, keep, implant)["stem_conv"], fates)


@pytest.mark.parametrize(("keep", "implant"), SIZES)
def test_networks_of_all_criteria_are_equal_in_size_within_a_channel(params, keep, implant):
    kernels = convolutions(params)
    budget = keep * num_weights(weight_masks(choose_all(kernels, KEPT), kernels))
    # A channel of the first stage is 9 x 4 weights, and as many in each of the 3 that read it.
    channel = 9 * 8 + 9 * 8 + 8 + 9 * 4
    for scores in (magnitude(kernels), chance(0, kernels), chance(1, kernels)):
        size = num_weights(weight_masks(choose_fates(scores, kernels, keep, implant), kernels))
        assert budget - channel < size <= budget


def choose_all(kernels, fate):
    return {name: np.full(kernel.shape[-1], fate) for name, kernel in kernels.items()}


@pytest.mark.parametrize(("keep", "implant"), SIZES)
def test_what_is_left_of_a_channel_is_as_its_fate_says(params, keep, implant):
    fates = random_fates(params, keep, implant)
    pruned = prune(params, fates)
    kernels, before = convolutions(pruned), convolutions(params)
    for name, kernel in kernels.items():
        assert (fates[name] == KEPT).any()
        is_input = np.asarray(kernel != 0).any((0, 1, 3))
        for i, fate in enumerate(fates[name]):
            left = np.asarray(kernel[..., is_input, i])
            trained = np.asarray(before[name][..., is_input, i])
            expected = {KEPT: trained, PRUNED: np.zeros_like(left), IMPLANTED: centre_of(trained)}
            np.testing.assert_array_equal(left, expected[Fate(fate)])
    assert num_weights(weight_masks(fates, before)) == sum(
        np.count_nonzero(kernel) for kernel in kernels.values()
    )


def centre_of(filters):
    """The kernel with nothing but its centre tap."""
    centre = np.zeros_like(filters)
    place = (filters.shape[0] // 2, filters.shape[1] // 2)
    centre[place] = filters[place]
    return centre


def test_a_channel_without_weights_leaves_no_trace_in_its_normalisation(params):
    fates = random_fates(params, 0.3, 0.2)
    pruned = prune(params, fates)
    block = pruned["stage1_block1"]
    for fate, norm in (
        (fates["stem_conv"], pruned["stem_norm"]),
        (fates["stage1_block1/conv2"], block["norm2"]),
        (fates["stage2_block1/shortcut_conv"], pruned["stage2_block1"]["shortcut_norm"]),
    ):
        for leaf in norm.values():
            np.testing.assert_array_equal(leaf != 0, fate > PRUNED)
    np.testing.assert_array_equal(pruned["head"]["kernel"], params["head"]["kernel"])


@pytest.mark.parametrize("train", [False, True])
def test_inputs_that_do_not_remain_are_not_missed(model, variables, train):
    """Whatever the weights that read a channel that is gone, the network computes the same."""
    fates = random_fates(variables["params"], 0.3, 0.3, seed=2)
    params = prune(variables["params"], fates)
    gone = 0

    def fill(path, leaf):
        nonlocal gone
        name = "/".join(each.key for each in path[:-1])
        if name not in fates:
            return leaf
        whole = (fates[name] == KEPT) & np.ones(leaf.shape, bool)
        missing = whole & ~np.asarray(leaf != 0)
        gone += missing.sum()
        return jnp.where(missing, 7.0, leaf)

    filled = jax.tree.map_with_path(fill, params)
    assert gone > 50

    @jax.jit
    def outputs(params):
        images = jax.random.normal(jax.random.key(1), (8, 8, 8, 1))
        variables_ = variables | {"params": params}
        return model.apply(variables_, images, train=train, mutable=["batch_stats"])[0]

    np.testing.assert_array_equal(outputs(filled), outputs(params))
    assert np.ptp(outputs(params)) > 0


@pytest.mark.parametrize("stride", [1, 2])
def test_an_implant_is_a_convolution_with_kernels_of_one_pixel(stride):
    kernel = jax.random.normal(jax.random.key(0), (3, 3, 2, 1))
    images = jax.random.normal(jax.random.key(1), (1, 8, 8, 2))

    def convolve(kernel, padding):
        return jax.lax.conv_general_dilated(
            images,
            kernel,
            (stride, stride),
            [(padding, padding)] * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )

    masks = weight_masks({"stem_conv": np.array([IMPLANTED])}, {"stem_conv": kernel})
    implant = jnp.where(masks["stem_conv"], kernel, 0.0)
    np.testing.assert_allclose(
        convolve(implant, 1), convolve(kernel[1:2, 1:2], 0), rtol=1e-5, atol=1e-6
    )


def test_a_size_that_can_not_be_reached_is_refused_with_the_smallest_that_can(params):
    with pytest.raises(SettingError, match=r"--keep must be at least .* not 0.001") as error:
        random_fates(params, 0.001, 0.5)
    (smallest,) = re.findall(r"at least (\S+) with", str(error.value))
    random_fates(params, float(smallest), 0.5)
    with pytest.raises(SettingError):
        random_fates(params, 0.99 * float(smallest), 0.5)
