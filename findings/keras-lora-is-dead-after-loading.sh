#!/usr/bin/env bash
# keras 3.15.1 on torch 2.13.0, Python 3.11
#
# Guess: a layer with enable_lora(rank), trained, saved and loaded (save_weights and load_weights, or save and load_model),
# predicts what it did and trains on.
# Seen: it predicts what it did: the product of the factors was added to the kernel in the file. Both factors are zeros after
# loading, though, where enable_lora makes only one of them zero; the gradient of each has the other as a factor, and so
# neither ever moves again. They are listed as trainable and training goes on without a word, here with the bias alone. Only
# an Adam that is loaded with the model (compile=True), with its moments from before, pushes them off zero.
set -euo pipefail
place="$(mktemp -d)"
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet keras==3.15.1 torch==2.13.0 numpy
cd "$place"
OMP_NUM_THREADS=1 KERAS_BACKEND=torch "$place/venv/bin/python" -W ignore - <<'PY'
import keras
import numpy as np

assert keras.__version__ == "3.15.1", keras.__version__
rng = np.random.default_rng(0)
x, y = rng.standard_normal((32, 16)).astype("float32"), rng.standard_normal((32, 4)).astype("float32")


def network():
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((16,)), keras.layers.Dense(4, name="dense")])
    model.layers[0].enable_lora(2)
    model.compile(keras.optimizers.Adam(0.01), "mse")
    return model


def largest(model):
    layer = model.layers[0]
    return [float(np.abs(keras.ops.convert_to_numpy(factor)).max()) for factor in (layer.lora_kernel_a, layer.lora_kernel_b)]


trained = network()
print("fresh: largest entries of the factors", largest(trained))
assert max(largest(trained)) > 0
trained.fit(x, y, epochs=5, verbose=0)
wanted = trained.predict(x, verbose=0)
trained.save_weights("lora.weights.h5")
trained.save("lora.keras")
loaded = network()
loaded.load_weights("lora.weights.h5")
again = keras.saving.load_model("lora.keras", compile=False)
again.compile(keras.optimizers.Adam(0.01), "mse")
for what, model in {"load_weights": loaded, "load_model": again}.items():
    assert np.allclose(model.predict(x, verbose=0), wanted, atol=1e-5)
    names = [variable.name for variable in model.trainable_variables]
    assert {"lora_kernel_a", "lora_kernel_b"} <= set(names), names
    before = largest(model)
    model.fit(x, y, epochs=5, verbose=0)
    print(f"{what}: {before}, after five more epochs {largest(model)}, trainable: {names}")
    assert before == largest(model) == [0, 0], "the factors train now"
PY
