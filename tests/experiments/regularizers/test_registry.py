"""Methods as text."""

import pytest

from experiments.regularizers import SehtD, SehtH, describe_method, parse_method


@pytest.mark.parametrize(
    ("words", "method"),
    [
        (["plain"], ()),
        ([], ()),
        (["seht-h"], (SehtH(),)),
        (["seht-h:lam=1e-3,num_probes=2"], (SehtH(lam=1e-3, num_probes=2),)),
        (["seht-d:lam=1"], (SehtD(lam=1.0),)),
        (["seht-d:p=0.3,p_entries=0.5"], (SehtD(p=0.3, p_entries=0.5),)),
        (["seht-d:p_entries=None,rescale=False"], (SehtD(rescale=False),)),
        (["seht-d", "seht-h"], (SehtD(), SehtH())),
    ],
)
def test_words_name_a_method(words, method):
    assert parse_method(words) == method


@pytest.mark.parametrize(
    "method", [(), (SehtH(warmup_steps=7),), (SehtD(p=0.3, p_entries=0.5), SehtH())]
)
def test_a_description_is_read_back(method):
    assert parse_method(describe_method(method)) == method


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["saht"], "no regularizer 'saht'; known are plain, seht-d, seht-h"),
        (["plain", "seht-h"], "no regularizer 'plain'; plain stands alone"),
        (["seht-h:p=0.1"], "cannot read 'p=0.1'.*lam, num_probes, warmup_steps"),
        (["seht-h:lam"], "cannot read 'lam'"),
        (["seht-h:lam=big"], "lam=big in 'seht-h:lam=big' is not of type float"),
        (["seht-h:lam=True"], "lam=True .* is not of type float"),
        (["seht-h:num_probes=1.5"], "num_probes=1.5 .* is not of type int"),
        (["seht-d:rescale=1"], "rescale=1 .* is not of type bool"),
        (["seht-h:warmup_steps=-1"], "warmup_steps must be at least 0, not -1"),
        (["seht-h:num_probes=0"], "num_probes must be at least 1, got 0"),
        (["seht-h:lam=1e999"], "lam must be finite, not inf"),
        (["seht-d:p=0.7"], r"p_entries.*must be in \(0, 0.5\], got 0.7"),
        (["seht-d:p=1.5,p_entries=0.5"], r"p_layers.*must be in \(0, 1\], got 1.5"),
    ],
)
def test_a_mistake_is_named(words, message):
    with pytest.raises(ValueError, match=message):
        parse_method(words)
