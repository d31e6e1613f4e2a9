# %% [markdown]
# # A penalty in an existing NNX training loop
#
# A Flax NNX training loop as it is commonly written: a model with batch normalisation and
# dropout, an `nnx.Optimizer`, and a jitted step. Then the penalty is put into it.

# %%
import jax
import jax.numpy as jnp
import optax
from flax import nnx
from sklearn.datasets import load_digits

import seht_jax as seht

images, labels = load_digits(return_X_y=True)
images = jnp.asarray(images / 16, jnp.float32).reshape(-1, 8, 8, 1)
labels = jnp.asarray(labels)
train_images, train_labels = images[:1400], labels[:1400]
test_images, test_labels = images[1400:], labels[1400:]


class Net(nnx.Module):
    def __init__(self, rngs):
        self.convolution = nnx.Conv(1, 16, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(16, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)
        self.head = nnx.Linear(16 * 4 * 4, 10, rngs=rngs)

    def __call__(self, images):
        maps = nnx.relu(self.norm(self.convolution(images)))
        maps = nnx.avg_pool(maps, (2, 2), (2, 2))
        return self.head(self.dropout(maps.reshape(len(images), -1)))


def batches(key, size=50):
    for rows in jax.random.permutation(key, len(train_labels)).reshape(-1, size):
        yield train_images[rows], train_labels[rows]


# %% [markdown]
# ## The loop that is there


# %%
def cross_entropy(logits, labels):
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


@nnx.jit
def plain_step(model, optimizer, images, labels):
    def loss_fn(model):
        return cross_entropy(model(images), labels)

    loss, gradients = nnx.value_and_grad(loss_fn)(model)
    optimizer.update(model, gradients)
    return loss


# %% [markdown]
# ## The penalty in it
#
# `nnx.value_and_grad` lets the loss change the model (batch statistics, dropout's counter). The
# penalty differentiates a *pure* function several times over, so the model is split into what is
# trained and the rest; the rest comes back as aux, and is written into the model once. Three
# things are new: the split, the mark `seht.outputs`, and `seht.regularize`.


# %%
@nnx.jit
def regularized_step(model, optimizer, images, labels, key, strength):
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)

    def loss_fn(params):
        model = nnx.merge(graphdef, params, rest, copy=True)
        loss = cross_entropy(seht.outputs(model(images)), labels)
        return loss, nnx.state(model, nnx.Not(nnx.Param))

    penalised = seht.regularize(
        loss_fn, key, None, strength, has_aux=True, curvature="gauss_newton", scale_free=True
    )
    (loss, rest), gradients = jax.value_and_grad(penalised, has_aux=True)(params)
    nnx.update(model, rest)
    optimizer.update(model, gradients)
    return loss


# %% [markdown]
# ## Both, side by side
#
# Everything else of the loop stays: optimizer, batches, evaluation.

# %%
NUM_EPOCHS = 8
NUM_STEPS = NUM_EPOCHS * len(train_labels) // 50


def train(step_function):
    model = Net(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adam(3e-3), wrt=nnx.Param)
    step = 0
    for epoch_key in jax.random.split(jax.random.key(1), NUM_EPOCHS):
        for images, labels in batches(epoch_key):
            step_function(model, optimizer, images, labels, step)
            step += 1
    model.eval()
    return model


def with_penalty(model, optimizer, images, labels, step):
    key = jax.random.fold_in(jax.random.key(2), step)
    strength = 0.06 * (step / NUM_STEPS) ** 2
    regularized_step(model, optimizer, images, labels, key, jnp.asarray(strength))


plain = train(lambda *arguments: plain_step(*arguments[:-1]))
regularized = train(with_penalty)

# %% [markdown]
# The curvature is measured with the same library, of the network as it is evaluated: no dropout,
# running statistics.


# %%
graphdef = nnx.graphdef(plain)


def evaluation_loss(params, rest, images, labels):
    model = nnx.merge(graphdef, params, rest, copy=True)
    return cross_entropy(seht.outputs(model(images)), labels)


gauss_newton_trace = jax.jit(
    seht.hutchinson_trace(
        evaluation_loss, jax.random.key(3), num_probes=50, curvature="gauss_newton"
    )
)


def describe(model):
    _, params, rest = nnx.split(model, nnx.Param, ...)
    trace = gauss_newton_trace(params, rest, train_images, train_labels)
    accuracy = jnp.mean(jnp.argmax(model(test_images), -1) == test_labels)
    return (
        f"tr(G) {trace.mean:.1f} ± {trace.standard_error:.1f}, "
        f"test loss {evaluation_loss(params, rest, test_images, test_labels):.3f}, "
        f"test accuracy {accuracy:.1%}"
    )


print("      plain:", describe(plain))
print("regularized:", describe(regularized))

# %% [markdown]
# To leave the step as it is, put the penalty into the optimizer instead: the [optax
# form](../training.html#the-optax-form).
