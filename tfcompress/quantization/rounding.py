"""Learned rounding: for each weight, whether the code below or the one above keeps its layer's output best."""

import keras
import numpy as np

from tfcompress import _keras_compat, carriers
from tfcompress.graph.fold import KERNELS
from tfcompress.parametrization import Parametrization, deparametrize, parametrize
from tfcompress.quantization.lockstep import Parts

ops = keras.ops

# The rectified sigmoid is stretched from 0..1 to these ends and clipped to 0..1, so that it reaches both.
_ZETA, _GAMMA = 1.1, -0.1
# The regularizer's weight, its exponent at first and at last, and the share of steps before it begins.
_LAMBDA, _BETA, _WARM = 0.01, (20.0, 2.0), 0.2
_BATCH = 32
# An entry of V can travel so far in all steps together.
_TRAVEL = 10.0


def rectified_sigmoid(v):
    """h(V) = clip(sigmoid(V) (zeta - gamma) + gamma, 0, 1).

    Example:
        >>> ops.convert_to_numpy(rectified_sigmoid(ops.array([-9.0, 0.0, 9.0]))).tolist()
        [0.0, 0.5, 1.0]
    """
    return ops.clip(ops.sigmoid(v) * (_ZETA - _GAMMA) + _GAMMA, 0.0, 1.0)


def annealed(count, steps: int):
    """The regularizer's exponent after `count` of `steps` steps: 20 until a fifth is done, then along a cosine to 2.

    Example:
        >>> [round(float(annealed(ops.array(float(n)), 10)), 2) for n in (0, 2, 6, 10)]
        [20.0, 20.0, 11.0, 2.0]
    """
    done = ops.clip((count - _WARM * steps) / ((1 - _WARM) * steps), 0.0, 1.0)
    return _BETA[1] + 0.5 * (_BETA[0] - _BETA[1]) * (1 + ops.cos(np.pi * done))


class _SoftRounding(Parametrization):
    """unit * clip(floor(w / unit) + h(V), -high, high), V trained."""

    source = True

    def __init__(self, steps: int, high: int):
        self.steps, self.high = steps, high

    def build(self, layer, name, shape):
        self.v = self.add_variable("v", shape, "zeros", trainable=True)
        self.floor = self.add_variable("floor", shape, "zeros")
        self.unit = self.add_variable("unit", shape, "ones")
        self.count = self.add_variable("count", (), "zeros")

    def begin_at(self, value: np.ndarray, unit: np.ndarray) -> None:
        """Set the codes below the weight, and V so that h(V) is what lies between."""
        code = value / unit
        rest = np.clip(code - np.floor(code), 1e-3, 1 - 1e-3)
        self.v.assign(-np.log((_ZETA - _GAMMA) / (rest - _GAMMA) - 1))
        self.floor.assign(np.floor(code))
        self.unit.assign(np.broadcast_to(unit, value.shape))

    def __call__(self, value):
        if _keras_compat.training_now():
            self.count.assign(self.count.value + 1)
        soft = self.floor.value + rectified_sigmoid(self.v.value)
        return self.unit.value * ops.clip(soft, -self.high, self.high)

    def penalty(self):
        count = self.count.value
        beta = annealed(count, self.steps)
        distance = ops.abs(2 * rectified_sigmoid(self.v.value) - 1)
        # Its derivative at 0 is that of 0^beta, which is none: nothing is exactly in the middle for long.
        term = _LAMBDA * ops.sum(1 - ops.power(ops.maximum(distance, 1e-6), beta))
        return ops.where(count > _WARM * self.steps, term, ops.zeros_like(term))

    def codes(self) -> np.ndarray:
        """The codes that V has decided on."""
        up = ops.convert_to_numpy(self.v.value) >= 0
        return np.clip(ops.convert_to_numpy(self.floor.value) + up, -self.high, self.high)


def learn_codes(layer, unit: np.ndarray, high: int, floats: Parts, rounded: Parts, activation=None, steps: int = 1000,
                seed: int = 0) -> tuple[np.ndarray, float, float]:  # fmt: skip
    """Codes of a layer's kernel that keep its output on samples: AdaRound.

    Minimized is the squared difference of f(W x) and f(W~ x~), x~ being what the layer reads in the network whose earlier
    layers are rounded, plus 0.01 sum (1 - |2 h(V) - 1|^beta), which drives every h to 0 or 1 (Nagel et al., Up or down?
    Adaptive rounding for post-training quantization, ICML 2020, equations 21 to 25). If rounding to nearest is better on
    the samples, its codes are returned.

    Args:
        layer: the float layer, unchanged. unit: of the grid, of the kernel's rank. high: largest code.
        floats, rounded: what the layer reads in the float and in the rounded network, arrays a batch.
        activation: f, a function; by default the layer's own. steps: of Adam. seed: of the batches.

    Returns:
        (codes, mean squared error of rounding to nearest, and of the codes).
    """
    name, _ = KERNELS[type(layer).__name__]
    value = np.asarray(keras.ops.convert_to_numpy(getattr(layer, name)), np.float64)
    unit = np.asarray(unit, np.float64)
    shape = floats[0].shape[1:]
    twin = _twin(layer, shape, activation)
    wanted = np.concatenate([ops.convert_to_numpy(twin(part)) for part in floats])
    x = np.concatenate(rounded)
    nearest = np.clip(np.rint(value / unit), -high, high)
    soft = _SoftRounding(steps, high)
    parametrize(twin, name, soft)
    soft.begin_at(value, unit)
    if twin.bias is not None:
        twin.bias.trainable = False
    model = keras.Sequential([keras.Input(shape), twin])
    # Outputs' mean over samples and positions of the sum over channels, as the paper weighs it against the regularizer.
    axis = -1 if type(layer).__name__ == "Dense" or layer.data_format == "channels_last" else 1
    model.compile(
        keras.optimizers.Adam(_TRAVEL / steps),
        lambda y, seen: ops.sum(ops.square(y - seen), axis=axis),
        jit_compile=False,
    )
    model.fit(_batches(x, wanted, seed), steps_per_epoch=steps, epochs=1, shuffle=False, verbose=0)
    learned = soft.codes()
    deparametrize(twin, bake=False)
    errors = [_error(twin, name, codes * unit, x, wanted) for codes in (nearest, learned)]
    return (learned if errors[1] < errors[0] else nearest), errors[0], min(errors)


def _twin(layer, shape, activation):
    """A float copy of a layer with another activation."""
    config = {key: value for key, value in layer.get_config().items() if key != "tfcompress"}
    twin = carriers.base_class(layer).from_config({**config, "trainable": True, "dtype": "float32"})
    for name in ("kernel_regularizer", "depthwise_regularizer", "pointwise_regularizer", "bias_regularizer"):
        if getattr(twin, name, None) is not None:
            setattr(twin, name, None)
    twin.activity_regularizer = None
    twin.build((None, *shape))
    twin.set_weights([ops.convert_to_numpy(w) for w in layer.weights])
    if activation is not None:
        twin.activation = activation
    return twin


def _batches(x: np.ndarray, y: np.ndarray, seed: int):
    rng = np.random.default_rng(seed)
    while True:
        rows = rng.integers(0, len(x), _BATCH)
        yield x[rows], y[rows]


def _error(layer, name: str, kernel: np.ndarray, x: np.ndarray, wanted: np.ndarray) -> float:
    """The mean squared error of a layer's output with another kernel."""
    getattr(layer, name).assign(kernel.astype("float32"))
    total = 0.0
    for start in range(0, len(x), 4 * _BATCH):
        rows = slice(start, start + 4 * _BATCH)
        made = ops.convert_to_numpy(layer(x[rows]))
        total += float(np.sum((made - wanted[rows]) ** 2, dtype=np.float64))
    return total / wanted.size
