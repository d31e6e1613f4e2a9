# %% [markdown]
# # A first regularized model
#
# A perceptron on scikit-learn's 8×8 digits, trained plainly and with the penalty: the same step,
# the same batches, one line apart. At the end the curvature of both is measured.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import optax
from sklearn.datasets import load_digits

import seht_jax as seht

images, labels = load_digits(return_X_y=True)
images, labels = jnp.asarray(images / 16, jnp.float32), jnp.asarray(labels)
order = jax.random.permutation(jax.random.key(0), len(labels))
train, test = order[:1000], order[1000:]

# %% [markdown]
# ## A model and its loss
#
# Params are any pytree. `seht.outputs` marks where the network ends and the loss begins, which
# the Gauss–Newton form needs to know; it changes nothing else.

# %%
SIZES = (64, 64, 64, 10)


def init(key):
    keys = jax.random.split(key, len(SIZES) - 1)
    return [
        {
            "kernel": jax.random.normal(key, (inputs, outputs)) * jnp.sqrt(2 / inputs),
            "bias": jnp.zeros(outputs),
        }
        for key, inputs, outputs in zip(keys, SIZES[:-1], SIZES[1:], strict=True)
    ]


def apply(params, images):
    *hidden, last = params
    for layer in hidden:
        images = jax.nn.relu(images @ layer["kernel"] + layer["bias"])
    return images @ last["kernel"] + last["bias"]


def loss_fn(params, images, labels):
    logits = seht.outputs(apply(params, images))
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


# %% [markdown]
# ## The training step
#
# The penalised loss is built inside the step, from the step's own key. Its strength rises with
# the square of the steps to 0.2, which is what to begin with; a strength of 0 is the plain step,
# and costs no more than that.

# %%
NUM_STEPS, BATCH_SIZE = 1500, 64
tx = optax.sgd(0.1, momentum=0.9)


def train_with(strength, seed=0):
    @jax.jit
    def train_step(params, opt_state, key, step):
        batch_key, probe_key = jax.random.split(key)
        batch = jax.random.choice(batch_key, train, (BATCH_SIZE,), replace=False)
        penalised = seht.regularize(
            loss_fn,
            probe_key,
            None,
            strength * (step / NUM_STEPS) ** 2,
            curvature="gauss_newton",
            scale_free=True,
        )
        gradients = jax.grad(penalised)(params, images[batch], labels[batch])
        updates, opt_state = tx.update(gradients, opt_state)
        return optax.apply_updates(params, updates), opt_state

    params = init(jax.random.key(seed))
    opt_state = tx.init(params)
    for step, key in enumerate(jax.random.split(jax.random.key(seed + 1), NUM_STEPS)):
        params, opt_state = train_step(params, opt_state, key, step)
    return params


plain = train_with(0.0)
regularized = train_with(0.2)

# %% [markdown]
# ## What came of it
#
# The trace of every layer, over all training images at once, with the standard error of the
# estimate.


# %%
def describe(params):
    traces = jax.jit(seht.layer_traces(loss_fn, jax.random.key(7), num_probes=100))(
        params, images[train], labels[train]
    )
    return {
        "train loss": float(loss_fn(params, images[train], labels[train])),
        "test loss": float(loss_fn(params, images[test], labels[test])),
        "test accuracy": float(
            jnp.mean(jnp.argmax(apply(params, images[test]), -1) == labels[test])
        ),
        "traces": traces,
    }


results = {"plain": describe(plain), "regularized": describe(regularized)}
for name, result in results.items():
    print(
        f"{name:>12}: train loss {result['train loss']:.4f}, test loss {result['test loss']:.4f}, "
        f"test accuracy {result['test accuracy']:.1%}"
    )

# %%
figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
for offset, (name, result) in zip((-0.2, 0.2), results.items(), strict=True):
    traces = result["traces"].values()
    axes.bar(
        [place + offset for place in range(len(traces))],
        [trace.mean for trace in traces],
        yerr=[trace.standard_error for trace in traces],
        width=0.4,
        label=name,
    )
axes.set_xticks(range(len(SIZES) - 1), [f"layer {i}" for i in range(len(SIZES) - 1)])
axes.set(ylabel="trace of the Hessian")
axes.legend()
plt.show()

# %% [markdown]
# The minimum is flatter: that is what the penalty is for. Whether the test loss is lower too is
# another question, and one seed does not answer it; change `seed` and see. What is known over
# many networks and seeds is in [which form, how strong](../forms.html).
#
# Next: the penalty in [a training loop that is there already](nnx_loop.html), and [more about the
# curvature](curvature.html) of a trained network.
