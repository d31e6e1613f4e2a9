# %% [markdown]
# # A first regularized model
#
# A perceptron on scikit-learn's 8×8 digits, trained plainly and with the penalty at two strengths:
# the same step, the same batches. At the end the curvature of all three is measured.

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
# The penalised loss is built inside the step, from the step's own key. The strength is an argument,
# so that one compiled step serves all strengths; a strength of 0 is the plain step, and costs no
# more than that.

# %%
NUM_STEPS, BATCH_SIZE = 1500, 64
tx = optax.sgd(0.03, momentum=0.9)


@jax.jit
def train_step(params, opt_state, key, strength):
    batch_key, probe_key = jax.random.split(key)
    batch = jax.random.choice(batch_key, train, (BATCH_SIZE,), replace=False)
    penalised = seht.regularize(
        loss_fn, probe_key, None, strength, curvature="gauss_newton", scale_free=True
    )
    gradients = jax.grad(penalised)(params, images[batch], labels[batch])
    updates, opt_state = tx.update(gradients, opt_state)
    return optax.apply_updates(params, updates), opt_state


# %% [markdown]
# The strength rises over the training with the square of the steps; 0.06 is what to begin with.


# %%
def train_with(strength, seed=0):
    params = init(jax.random.key(seed))
    opt_state = tx.init(params)
    for step, key in enumerate(jax.random.split(jax.random.key(seed + 1), NUM_STEPS)):
        params, opt_state = train_step(params, opt_state, key, strength * (step / NUM_STEPS) ** 2)
    return params


networks = {
    "plain": train_with(0.0),
    "regularized": train_with(0.06),
    "too strong": train_with(0.2),
}

# %% [markdown]
# ## What came of it
#
# The trace of every layer, over all training images at once, with the standard error of the
# estimate.

# %%
layer_traces = jax.jit(seht.layer_traces(loss_fn, jax.random.key(7), num_probes=100))
traces = {
    name: layer_traces(params, images[train], labels[train]) for name, params in networks.items()
}
for name, params in networks.items():
    accuracy = jnp.mean(jnp.argmax(apply(params, images[test]), -1) == labels[test])
    print(
        f"{name:>12}: train loss {loss_fn(params, images[train], labels[train]):.4f}, "
        f"test loss {loss_fn(params, images[test], labels[test]):.4f}, "
        f"test accuracy {accuracy:.1%}, "
        f"tr(H) {sum(trace.mean for trace in traces[name].values()):.1f}"
    )

# %%
figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
for offset, (name, layers) in zip((-0.27, 0, 0.27), traces.items(), strict=True):
    axes.bar(
        [place + offset for place in range(len(layers))],
        [trace.mean for trace in layers.values()],
        yerr=[trace.standard_error for trace in layers.values()],
        width=0.27,
        label=name,
    )
axes.set_xticks(range(len(SIZES) - 1), [f"layer {i}" for i in range(len(SIZES) - 1)])
axes.set(ylabel="trace of the Hessian")
axes.legend()
plt.show()

# %% [markdown]
# At 0.06 the minimum is flatter: that is what the penalty is for. At 0.2 it is sharper, and the
# losses are several times as large: here that is too much, while other networks do best with it.
# So choose the strength by the loss on validation data. Whether a flatter network has a lower test
# loss is another question, and one seed does not answer it; change `seed` and see. What is known
# over many networks and seeds is in [which form, how strong](../forms.html).
#
# Next: the penalty in [a training loop that is there already](nnx_loop.html), and [more about the
# curvature](curvature.html) of a trained network.
