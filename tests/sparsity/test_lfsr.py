"""[83]: registers against a literal loop and compiled C, training under the mask, bytes of the stored form."""

import ctypes
import pathlib
import shutil
import subprocess
import sys

import keras
import numpy as np
import pytest

import tfcompress
from tfcompress import apply, codecs, finalize, select
from tfcompress.codecs.lfsr import LFSRCoding, from_matrix, to_matrix
from tfcompress.core import lfsr
from tfcompress.core.signs import SignWeight
from tfcompress.errors import CompressionError
from tfcompress.parametrization import chain
from tfcompress.sparsity import LFSR, LFSRMask, handed

PAPER_TAPS = {8: (8, 6, 5, 4), 9: (9, 5), 10: (10, 7), 11: (11, 9), 12: (12, 6, 4, 1), 16: (16, 15, 13, 4)}


def literal_states(bits, taps, seed, count):
    """A register as a list of stage contents, stage 1 first: what the papers draw."""
    stages = [(seed >> (bits - t)) & 1 for t in range(1, bits + 1)]
    states = []
    for _ in range(count):
        states.append(sum(bit << (bits - t) for t, bit in enumerate(stages, 1)))
        new = 0
        for tap in taps:
            new ^= stages[tap - 1]
        stages = [new, *stages[:-1]]
    return states


def literal_mask(bits, taps, seeds, limit, inputs):
    columns = [[state <= limit for state in literal_states(bits, taps, int(seed), inputs)] for seed in seeds]
    return np.array(columns).T


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """tfcompress/kernels/lfsr.c as a shared library."""
    source = pathlib.Path(tfcompress.__file__).parent / "kernels" / "lfsr.c"
    library = tmp_path_factory.mktemp("c") / "lfsr.so"
    compiler = [shutil.which("cc")] if shutil.which("cc") else [sys.executable, "-m", "ziglang", "cc"]
    flags = ["-O2", "-Wall", "-Wextra", "-Werror", "-ffp-contract=off", "-shared", "-fPIC"]
    subprocess.run([*compiler, *flags, "-o", str(library), str(source)], check=True)
    found = ctypes.CDLL(str(library))
    found.tfc_lfsr_product.restype = ctypes.c_int64
    return found


def arguments(register, limit, seeds, inputs):
    seeds = np.ascontiguousarray(seeds, np.uint32)
    return seeds, (register.bits, register.feedback, limit, seeds.ctypes.data_as(ctypes.c_void_p), inputs, len(seeds))


def pointer(array):
    return array.ctypes.data_as(ctypes.c_void_p)


@pytest.mark.paper(83)
@pytest.mark.parametrize(("bits", "taps"), PAPER_TAPS.items())
def test_a_register_visits_every_state_once_and_exactly_t_of_them_pass(bits, taps):
    register = lfsr.Register(bits, taps)
    assert sorted(register.cycle.tolist()) == list(range(1, 2**bits))
    count = min(2000, register.period)
    assert register.cycle[:count].tolist() == literal_states(bits, taps, 1, count)
    assert literal_states(bits, taps, int(register.cycle[-1]), 2)[1] == 1  # the cycle closes
    for limit in (1, 2**bits // 10, 2**bits - 1):
        full = register.mask(register.scattered(3, 5), limit, register.period)
        assert full.sum(0).tolist() == [limit] * 5


@pytest.mark.paper(83)
def test_every_default_width_has_its_full_period():
    for bits in lfsr.TAPS:
        assert np.unique(lfsr.Register(bits).cycle).size == 2**bits - 1


@pytest.mark.paper(83)
@pytest.mark.jax
@pytest.mark.parametrize("stride", [None, 37])
def test_one_mask_in_numpy_in_the_layer_and_in_c_bit_for_bit(compiled, stride):
    inputs, outputs = 784, 96
    layer = keras.layers.Dense(outputs, kernel_initializer="ones", use_bias=False)
    layer.build((None, inputs))
    link = LFSRMask(density=0.1, seed=11, stride=stride)
    tfcompress.parametrize(layer, "kernel", link)
    oracle = literal_mask(10, (10, 7), link.phases, round(0.1 * 1024), inputs)
    assert np.array_equal(link.register.mask(link.phases, link.limit, inputs), oracle)
    # In the compiled graph of the backend: the layer of ones on unit vectors gives the mask itself.
    model = keras.Sequential([keras.Input((inputs,)), layer])
    assert np.array_equal(model.predict(np.eye(inputs), verbose=0), oracle.astype("float32"))
    mask = np.empty((inputs, outputs), np.uint8)
    _seeds, given = arguments(link.register, link.limit, link.phases, inputs)
    compiled.tfc_lfsr_mask(*given, pointer(mask))
    assert np.array_equal(mask, oracle)
    again = LFSRMask(density=0.1, seed=11, stride=stride)
    other = keras.layers.Dense(outputs)
    other.build((None, inputs))
    tfcompress.parametrize(other, "kernel", again)
    assert np.array_equal(again.mask, oracle)


@pytest.mark.paper(83)
def test_strides_are_phases_of_one_sequence():
    register = lfsr.Register(9)
    seeds = register.strided(77, 5, 8)
    walked = literal_states(9, (9, 5), 77, 5 * 8)
    assert seeds.tolist() == walked[::5]


@pytest.mark.paper(83)
def test_neurons_differ_and_no_input_is_dead_from_ten_percent_on():
    for inputs, outputs, density, stride in [(784, 512, 0.1, None), (784, 512, 0.1, 311), (512, 512, 0.5, None)]:
        bits = lfsr.bits_for(inputs, outputs)
        register = lfsr.Register(bits)
        seeds = register.scattered(5, outputs) if stride is None else register.strided(1, stride, outputs)
        assert np.unique(seeds).size == outputs
        mask = register.mask(seeds, lfsr.threshold(density, bits), inputs)
        assert np.unique(mask.T, axis=0).shape[0] == outputs
        assert mask.any(1).all()
        assert abs(mask.mean() - density) < 0.01


@pytest.mark.paper(83)
def test_dead_inputs_are_reported():
    model = keras.Sequential(
        [keras.Input((200,)), keras.layers.Dense(4, name="few"), keras.layers.Dense(300, name="many")]
    )
    sparse = apply(model, LFSR(density=0.1), verbose=0)
    link = chain(sparse.get_layer("few")).links[0]
    dead = int((~(sparse.get_layer("few").kernel.numpy() != 0).any(1)).sum())
    assert link.dead_inputs.size == dead > 0
    rows = {row.layer: row.detail for row in tfcompress.summary(sparse).rows if row.weight == "kernel"}
    assert f"{dead} of 200 inputs dead" in rows["few"]
    # Four inputs cannot reach 300 neurons at ten percent: those that read nothing are reported too.
    silent = int((~(sparse.get_layer("many").kernel.numpy() != 0).any(0)).sum())
    assert f"{silent} of 300 neurons without input" in rows["many"]
    assert silent > 0


@pytest.mark.paper(83)
@pytest.mark.jax
def test_density_one_is_the_dense_layer():
    model = keras.Sequential([keras.Input((30,)), keras.layers.Dense(20)])
    x = np.random.default_rng(0).normal(size=(7, 30)).astype("float32")
    sparse = apply(model, LFSR(density=1.0), verbose=0)
    assert chain(sparse.layers[0]).links[0].limit == 2**8 - 1
    assert np.array_equal(sparse.predict(x, verbose=0), model.predict(x, verbose=0))


@pytest.mark.paper(83)
@pytest.mark.jax
def test_nothing_outside_the_mask_moves_in_100_steps_of_adam_with_weight_decay():
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [
            keras.Input((40,)),
            keras.layers.Dense(30, kernel_regularizer=keras.regularizers.L2(1e-2)),
            keras.layers.Dense(3),
        ]
    )
    sparse = apply(model, LFSR(density=0.2), verbose=0)
    sparse.compile(keras.optimizers.AdamW(1e-2, weight_decay=0.1), "mse", jit_compile=keras.backend.backend() == "jax")
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(64, 40)).astype("float32"), rng.normal(size=(64, 3)).astype("float32")
    link = chain(sparse.layers[0]).links[0]
    outside = ~literal_mask(8, (8, 6, 5, 4), link.phases, round(0.2 * 256), 40)
    before = sparse.layers[0].kernel.numpy()
    sparse.fit(x, y, epochs=100, batch_size=64, verbose=0)
    after = sparse.layers[0].kernel.numpy()
    assert (after[outside] == 0).all()
    assert (np.asarray(chain(sparse.layers[0]).raw.value)[outside] == 0).all()
    assert (after[~outside] != before[~outside]).all()
    slots = [np.asarray(v.value) for v in sparse.optimizer.variables if tuple(v.shape) == (40, 30)]
    assert len(slots) == 2
    assert all((slot[outside] == 0).all() and (slot[~outside] != 0).all() for slot in slots)  # the gradients were 0


@pytest.mark.paper(83)
@pytest.mark.parametrize("layer", ["dense", "conv", "depthwise", "transposed"])
@pytest.mark.parametrize("stride", [None, 7])
def test_decode_is_the_inverse_of_encode(layer, stride):
    made = {
        "dense": (keras.layers.Dense(24), (100,)),
        "conv": (keras.layers.Conv2D(12, 3), (8, 8, 5)),
        "depthwise": (keras.layers.DepthwiseConv2D(5, depth_multiplier=2), (8, 8, 6)),
        "transposed": (keras.layers.Conv2DTranspose(12, 3), (8, 8, 5)),
    }[layer]
    model = keras.Sequential([keras.Input(made[1]), made[0]])
    sparse = apply(model, LFSR(density=0.3, stride=stride), verbose=0)
    kernel = sparse.layers[0].kernel.numpy()
    name = f"{sparse.layers[0].name}.kernel"
    coding = handed(sparse)[name]
    packed = codecs.dumps({"w": kernel}, handed={"w": coding})
    assert np.array_equal(codecs.loads(packed)["w"], kernel)
    again = LFSRCoding.from_bytes(coding.to_bytes(), kernel.shape, kernel.dtype)
    assert again.value().tobytes() == kernel.tobytes()
    assert again.values.size == np.count_nonzero(kernel)


@pytest.mark.paper(83)
def test_a_filter_of_a_convolution_reads_its_positions_in_scan_order():
    layer = keras.layers.Conv2D(4, 3, kernel_initializer="ones")
    layer.build((None, 8, 8, 5))
    link = LFSRMask(density=0.4, seed=3)
    tfcompress.parametrize(layer, "kernel", link)
    kernel = layer.kernel.numpy()
    for filter_, seed in enumerate(link.phases):
        states = literal_states(8, (8, 6, 5, 4), int(seed), 45)
        assert kernel[..., filter_].ravel().tolist() == [float(s <= round(0.4 * 256)) for s in states]
    depthwise = np.arange(2 * 2 * 3 * 2).reshape(2, 2, 3, 2)
    assert to_matrix(depthwise, "last two")[:, 3].tolist() == depthwise[:, :, 1, 1].ravel().tolist()
    transposed = np.arange(2 * 2 * 3 * 4).reshape(2, 2, 3, 4)
    assert to_matrix(transposed, "before last")[:, 1].tolist() == transposed[:, :, 1, :].ravel().tolist()
    assert np.array_equal(from_matrix(to_matrix(transposed, "before last"), (2, 2, 3, 4), "before last"), transposed)


@pytest.mark.paper(83)
def test_the_file_holds_values_and_seeds_and_no_index():
    inputs, outputs, bits, limit = 784, 512, 10, 102
    register = lfsr.Register(bits)
    signs = np.random.default_rng(0).choice(np.float32([-1, 1]), (inputs, outputs))
    seeds = register.scattered(9, outputs)
    mask = literal_mask(bits, (10, 7), seeds, limit, inputs)
    kernel = np.where(mask, signs, np.float32(0))
    data = LFSRCoding.of(kernel, register, limit, seeds).to_bytes()
    survivors = int(mask.sum())
    header = 1 + 1 + 2 + 1 + 1  # bits, number of taps, taps, T (102 < 128), kind
    table = 1 + 1 + 2 * 4  # coding, its base, its two words
    assert len(data) == header + outputs * bits // 8 + table + -(-survivors // 8)
    assert abs(survivors / 8 - inputs * outputs / 80) < 0.01 * inputs * outputs / 80
    one_seed = LFSRCoding.of(np.abs(kernel) * 0 + 1, register, limit, (1, 311))
    assert len(one_seed.to_bytes()) == header + 1 + 2 + 1 + 4  # seed 1, stride 311, coding "constant", one word
    assert len(data) < 0.12 * inputs * outputs / 8
    # Against what any coding finds in the kernel, which has to say where the survivors are.
    assert len(data) < 0.3 * len(codecs.dumps({"w": kernel}))


@pytest.mark.paper(83)
def test_a_model_is_packed_as_values_and_seeds(tmp_path):
    model = keras.Sequential(
        [
            keras.Input((784,)),
            keras.layers.Dense(64, name="a"),
            keras.layers.Dense(64, name="b"),
            keras.layers.Dense(10),
        ]
    )
    sparse = apply(model, LFSR(density=0.1, exclude="dense*"), verbose=0)
    plain = finalize(sparse, verbose=0)
    report = codecs.pack(plain, tmp_path / "seeds.tfcz", handed=handed(sparse))
    found = codecs.pack(plain, tmp_path / "found.tfcz")
    assert sum(row.coding == "handed" for row in report.rows) == 2
    survivors = sum(int((plain.get_layer(name).kernel.numpy() != 0).sum()) for name in "ab")
    assert report.file_bytes < found.file_bytes - 2 * 64 * 10 // 8  # the places of the survivors cost more than that
    assert report.file_bytes > 3 * survivors  # float values stay
    again = keras.saving.load_model(codecs.unpack(tmp_path / "seeds.tfcz", tmp_path / "again.keras"))
    for left, right in zip(plain.get_weights(), again.get_weights(), strict=True):
        assert np.array_equal(left, right)


@pytest.mark.paper(83)
def test_a_damaged_coding_is_refused():
    register = lfsr.Register(8)
    kernel = np.random.default_rng(0).normal(size=(20, 6)).astype("float32")
    coding = LFSRCoding.of(kernel, register, 100, register.scattered(1, 6))
    packed = {"w": coding.value()}
    data = bytearray(codecs.dumps(packed, handed={"w": coding}))
    for at in range(0, len(data), 3):
        broken = bytes(data[:at]) + bytes([data[at] ^ 0x41]) + bytes(data[at + 1 :])
        with pytest.raises(CompressionError):
            codecs.loads(broken)
    with pytest.raises(CompressionError, match="other values"):
        codecs.dumps({"w": kernel}, handed={"w": coding})


@pytest.mark.paper(83)
def test_the_product_on_the_fly_is_the_masked_product(compiled):
    rng = np.random.default_rng(0)
    inputs, outputs = 300, 40
    register = lfsr.Register(9)
    seeds, limit = register.scattered(2, outputs), lfsr.threshold(0.15, 9)
    mask = literal_mask(9, (9, 5), seeds, limit, inputs)
    for kernel, x, exact in [
        (rng.normal(size=(inputs, outputs)), rng.normal(size=(3, inputs)), False),
        (rng.choice([-1.0, 1.0], (inputs, outputs)), rng.integers(-9, 10, (3, inputs)), True),
    ]:
        kernel, x = np.where(mask, kernel, 0).astype("float32"), np.ascontiguousarray(x, np.float32)
        values = lfsr.to_values(kernel, mask)
        dense = x.astype("float64") @ kernel.astype("float64")
        given = lfsr.product(x, values, register, seeds, limit)
        assert np.abs(given - dense).max() <= (0 if exact else 1e-5)
        y = np.empty((3, outputs), np.float32)
        _seeds, c = arguments(register, limit, seeds, inputs)
        for row in range(3):
            read = compiled.tfc_lfsr_product(*c, pointer(values), pointer(x[row]), pointer(y[row]))
            assert read == mask.sum()
        assert np.array_equal(y, given)  # the same additions in the same order


@pytest.mark.paper(83)
def test_inputs_whose_bit_is_zero_are_not_read():
    register = lfsr.Register(8)
    seeds, limit = register.scattered(4, 3), 30
    mask = literal_mask(8, (8, 6, 5, 4), seeds, limit, 50)
    x = np.where(mask.any(1), 1.0, np.nan)[None]
    assert np.isnan(x).any()
    values = np.ones(int(mask.sum()))
    assert lfsr.product(x, values, register, seeds, limit).tolist() == [mask.sum(0).tolist()]


@pytest.mark.paper(83)
@pytest.mark.jax
@pytest.mark.parametrize("levels", [2, 3])
@pytest.mark.parametrize("draws", [False, True])
def test_binary_and_ternary_weights_are_masked_after_their_own_map(levels, draws):
    keras.utils.set_random_seed(2)
    model = keras.Sequential(
        [keras.Input((60,)), keras.layers.Dense(20, use_bias=False, name="a"), keras.layers.Dense(2)]
    )
    sparse = apply(model, [SignMethod(levels, draws), LFSR(density=0.25, layers="a")], verbose=0)
    link = chain(sparse.get_layer("a")).links[1]
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(64, 60)).astype("float32"), rng.normal(size=(64, 2)).astype("float32")
    sparse.compile(keras.optimizers.Adam(1e-2), "mse", jit_compile=keras.backend.backend() == "jax")
    before = sparse.get_layer("a").kernel.numpy()
    sparse.fit(x, y, epochs=10, batch_size=16, verbose=0)
    after = sparse.get_layer("a").kernel.numpy()
    assert set(np.unique(after[link.mask])) == ({-1.0, 1.0} if levels == 2 else {-1.0, 0.0, 1.0})
    assert (after[~link.mask] == 0).all()
    assert (before != after).sum() > 0
    raw = np.asarray(chain(sparse.get_layer("a")).raw.value)
    assert np.abs(raw).max() <= np.float32(np.sqrt(1.5 / 80))
    assert np.array_equal(finalize(sparse, verbose=0).get_layer("a").kernel.numpy(), after)


class SignMethod(tfcompress.method.WeightMethod):
    """Binary or ternary weights on the layer "a"."""

    layers = "a"

    def __init__(self, levels=2, draws=False):
        self.levels, self.draws = levels, draws

    def parametrization(self, path, layer, weight):
        return SignWeight(self.levels, self.draws)


@pytest.mark.paper(83)
@pytest.mark.jax
def test_the_saved_model_holds_no_mask(tmp_path):
    model = keras.Sequential([keras.Input((100,)), keras.layers.Dense(30, name="a")])
    sparse = apply(model, LFSR(density=0.1, seed=4), verbose=0)
    assert [v.path for v in sparse.get_layer("a").variables if v.name not in ("kernel", "bias", "step")] == []
    sparse.save(tmp_path / "m.keras")
    again = keras.saving.load_model(tmp_path / "m.keras")
    x = np.random.default_rng(0).normal(size=(4, 100)).astype("float32")
    assert np.array_equal(again.predict(x, verbose=0), sparse.predict(x, verbose=0))
    assert np.array_equal(again.get_layer("a").kernel.numpy(), sparse.get_layer("a").kernel.numpy())
    plain = finalize(sparse, verbose=0)
    assert np.array_equal(plain.predict(x, verbose=0), sparse.predict(x, verbose=0))


def test_assignment_keeps_the_mask():
    layer = keras.layers.Dense(5)
    layer.build((None, 20))
    link = LFSRMask(density=0.5)
    tfcompress.parametrize(layer, "kernel", link)
    layer.kernel.assign(np.full((20, 5), 2.0))
    assert np.array_equal(layer.kernel.numpy(), np.where(link.mask, 2.0, 0.0))


def test_each_weight_has_its_own_phases():
    model = keras.Sequential([keras.Input((50,)), keras.layers.Dense(50), keras.layers.Dense(50)])
    sparse = apply(model, LFSR(density=0.3, seed=1), verbose=0)
    first, second = (chain(layer).links[0].mask for layer in sparse.layers)
    assert not np.array_equal(first, second)
    other = apply(model, LFSR(density=0.3, seed=2), verbose=0)
    assert not np.array_equal(first, chain(other.layers[0]).links[0].mask)
    same = apply(model, LFSR(density=0.3, seed=1), verbose=0)
    assert np.array_equal(first, chain(same.layers[0]).links[0].mask)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"density": 0.0}, "density"),
        ({"density": 1.5}, "density"),
        ({"bits": 40}, "3 to 20 bits"),
        ({"bits": 8, "taps": (8, 4)}, "full period"),
        ({"bits": 8, "taps": (9, 4)}, "from 1 to 8"),
        ({"taps": (8, 4)}, "give `bits`"),
        ({"stride": 0}, "stride"),
        ({"seed": -1}, "seed"),
    ],
)
def test_bad_arguments_are_named(given, message):
    with pytest.raises(CompressionError, match=message):
        LFSR(**given)


def test_a_selection_leaves_the_rest_dense():
    model = keras.Sequential([keras.Input((20,)), keras.layers.Dense(20, name="a"), keras.layers.Dense(5, name="out")])
    sparse = apply(model, LFSR(density=0.2, layers=select.types("Dense"), exclude="out"), verbose=0)
    assert (sparse.get_layer("out").kernel.numpy() != 0).all()
    assert (sparse.get_layer("a").kernel.numpy() == 0).mean() > 0.6
