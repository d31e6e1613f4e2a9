# %% [markdown]
# # The curvature of a trained network
#
# What the Hessian of a trained network looks like: which layers are curved, the largest
# eigenvalues, and the distribution of all of them. It needs matfree: `pip install
# 'seht-jax[analysis]'`.

# %%
import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import optax
from sklearn.datasets import load_digits

import seht_jax as seht
from seht_jax import analysis

images, labels = load_digits(return_X_y=True)
data = {
    "images": jnp.asarray(images[:1000] / 16, jnp.float32).reshape(-1, 8, 8, 1),
    "labels": jnp.asarray(labels[:1000]),
}


class Net(nn.Module):
    @nn.compact
    def __call__(self, images):
        maps = nn.relu(nn.Conv(16, (3, 3), name="first")(images))
        maps = nn.relu(nn.Conv(16, (3, 3), strides=2, name="second")(maps))
        return nn.Dense(10, name="head")(maps.reshape(len(images), -1))


net = Net()
params = net.init(jax.random.key(0), data["images"][:1])["params"]


def loss_fn(params, batch):
    logits = seht.outputs(net.apply({"params": params}, batch["images"]))
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["labels"]).mean()


tx = optax.adam(1e-3)


@jax.jit
def train_step(carry, key):
    params, opt_state = carry
    rows = jax.random.choice(key, 1000, (50,), replace=False)
    batch = jax.tree.map(lambda array: array[rows], data)
    loss, gradients = jax.value_and_grad(loss_fn)(params, batch)
    updates, opt_state = tx.update(gradients, opt_state, params)
    return (optax.apply_updates(params, updates), opt_state), loss


(trained, _), losses = jax.lax.scan(
    train_step, (params, tx.init(params)), jax.random.split(jax.random.key(1), 600)
)
print(f"Training loss {losses[0]:.2f} at the first step, {losses[-50:].mean():.3f} at the end.")

# %% [markdown]
# ## The loss of a data set
#
# `mean_over_batches` makes it from the loss of a batch; the activations of one batch are in
# memory at a time. Whatever takes a loss takes the result.

# %%
loss = seht.mean_over_batches(loss_fn, batch_size=250)

# %% [markdown]
# ## Which layers are curved

# %%
traces = jax.jit(seht.layer_traces(loss, jax.random.key(2), num_probes=50))(trained, data)
for layer, trace in traces.items():
    print(f"{layer:>6}: {trace.mean:6.2f} ± {trace.standard_error:.2f}")

# %% [markdown]
# A layer that is small enough can be had exactly, here to check the estimate. A `layers` function
# that returns `None` leaves a leaf out.


# %%
def first_layer_alone(path):
    return "first" if path[0] == "first" else None


exact = jax.jit(seht.exact_trace(loss, layers=first_layer_alone))(trained, data)
print(f"first, exactly: {exact:.2f}")

# %% [markdown]
# ## The largest eigenvalues
#
# With a bound on their error: there is an eigenvalue within `residual` of each of them. Gradient
# descent with the learning rate η is stable at a minimum only if the largest is below 2/η.

# %%
compute = analysis.extreme_eigenpairs(loss, jax.random.key(3), num_pairs=3, num_products=60)
largest, smallest = jax.jit(compute)(trained, data)
for name, pairs in (("largest", largest), ("smallest", smallest)):
    for value, residual in zip(pairs.values, pairs.residuals, strict=True):
        print(f"{name}: {value:8.3f}, residual {residual:.1e}")

# %% [markdown]
# ## All eigenvalues
#
# Most of them are close to 0, so the axis is logarithmic.

# %%
quadrature = jax.jit(
    analysis.spectral_quadrature(loss, jax.random.key(4), num_probes=4, num_products=60)
)(trained, data)
top = float(largest.values[0])
points = jnp.linspace(-0.15 * top, 1.1 * top, 800)
density = analysis.smoothed_density(quadrature, points, width=0.01 * top)

figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
axes.semilogy(points, density.mean)
for value in largest.values:
    axes.axvline(value, color="0.6", linestyle=":")
axes.set(xlabel="eigenvalue", ylabel="density", ylim=(1e-6, None))
plt.show()

# %% [markdown]
# The dotted lines are the eigenvalues found above. For a run of this project's trainer, `python
# -m experiments analyse RUN` makes a page of all this, its plain twin beside it.
