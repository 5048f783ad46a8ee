"""Random small graphs of the layers that surgery follows: every cut that is planned equals its masks."""

import keras
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.graph.nets import choose, distance, layers, sample, stir
from tfcompress.graph.surgery import masked, remove_channels

STEPS = ["conv", "grouped", "depthwise", "separable", "transpose", "bn", "group_norm", "act", "prelu", "pool", "up", "pad",
         "add", "multiply", "concat", "split", "slice", "reshape", "shared", "nested", "gate", "dense"]  # fmt: skip


class Builder:
    """Draws steps; every tensor is (8, 8, channels) or a tensor of another size that only later steps of its own read."""

    def __init__(self, draw):
        self.draw, self.shared = draw, {}

    def pick(self, tensors):
        return tensors[self.draw(st.integers(0, len(tensors) - 1))]

    def alike(self, x, tensors):
        """A tensor of the same shape: one of those there are, or a projection."""
        same = [t for t in tensors if t.shape == x.shape and t is not x]
        return self.pick(same) if same else layers.Conv2D(x.shape[-1], 1)(x)

    def step(self, kind, x, tensors):
        size, channels = x.shape[1], x.shape[-1]
        width = self.draw(st.sampled_from([2, 3, 4, 6]))
        if kind == "conv":
            return layers.Conv2D(
                width, 3, padding="same", activation=self.draw(st.sampled_from([None, "relu", "gelu"]))
            )(x)
        if kind == "grouped":
            groups = self.draw(st.sampled_from([g for g in (1, 2, 3, channels) if channels % g == 0]))
            return layers.Conv2D(groups * 2, 1, groups=groups)(x)
        if kind == "depthwise":
            return layers.DepthwiseConv2D(3, padding="same", depth_multiplier=self.draw(st.integers(1, 2)))(x)
        if kind == "separable":
            return layers.SeparableConv2D(width, 3, padding="same")(x)
        if kind == "transpose":
            return layers.Conv2DTranspose(width, 3, padding="same")(x)
        if kind == "bn":
            return layers.BatchNormalization()(x)
        if kind == "group_norm":
            return layers.GroupNormalization(
                self.draw(st.sampled_from([g for g in (1, 2, channels) if channels % g == 0]))
            )(x)
        if kind == "act":
            return self.draw(
                st.sampled_from([layers.ReLU(), layers.Activation("tanh"), keras.ops.sigmoid, layers.Dropout(0.3)])
            )(x)
        if kind == "prelu":
            return layers.PReLU(shared_axes=self.draw(st.sampled_from([None, [1, 2]])))(x)
        if kind == "pool":
            return layers.AveragePooling2D(3, 1, padding="same")(x)
        if kind == "up":
            return layers.MaxPooling2D(2)(layers.UpSampling2D(2)(x))
        if kind == "pad":
            return layers.Cropping2D(1)(layers.ZeroPadding2D(1)(x))
        if kind == "add":
            return layers.Add()([x, self.alike(x, tensors)])
        if kind == "multiply":
            return x * self.alike(x, tensors)
        if kind == "concat":
            return layers.Concatenate()([x, self.pick(tensors)])
        if kind == "split" and channels > 1:
            left, right = keras.ops.split(x, [self.draw(st.integers(1, channels - 1))], axis=-1)
            return layers.Concatenate()([layers.Conv2D(2, 1)(right), left])
        if kind == "slice" and channels > 1:
            start = self.draw(st.integers(0, channels - 2))
            return x[:, :, :, start : self.draw(st.integers(start + 1, channels))]
        if kind == "reshape":
            return layers.Reshape((size, size, channels))(layers.Reshape((size * size, channels))(x))
        if kind == "shared":
            if channels not in self.shared:
                self.shared[channels] = layers.Conv2D(channels, 1)
            return self.shared[channels](x)
        if kind == "nested":
            i = keras.Input(x.shape[1:])
            return keras.Model(i, layers.ReLU()(layers.Conv2D(width, 1)(i)) if width > 2 else layers.ReLU()(i))(x)
        if kind == "gate":
            s = layers.GlobalAveragePooling2D(keepdims=True)(x)
            return x * layers.Conv2D(self.draw(st.sampled_from([1, channels])), 1, activation="sigmoid")(s)
        if kind == "dense":
            return layers.Dense(width)(x)
        return x


def random_model(draw):
    builder = Builder(draw)
    i = keras.Input((8, 8, 3))
    tensors = [layers.Conv2D(draw(st.sampled_from([2, 4, 6])), 3, padding="same")(i)]
    for kind in draw(st.lists(st.sampled_from(STEPS), min_size=2, max_size=7)):
        tensors.append(builder.step(kind, builder.pick(tensors[-3:]), tensors))
    end = tensors[-1]
    if draw(st.booleans()):
        end = layers.Flatten()(layers.AveragePooling2D(4)(end))
    else:
        end = layers.GlobalAveragePooling2D()(end)
    return stir(keras.Model(i, layers.Dense(3)(end)))


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data(), share=st.sampled_from([0.3, 0.6]), seed=st.integers(0, 3))
def test_cut_equals_masked(data, share, seed):
    model = random_model(data.draw)
    removals = choose(model, share, seed)
    cut, mask = remove_channels(model, removals), masked(model, removals)
    assert distance(cut, mask, sample(model)) <= 1e-5
    if removals:
        assert cut.count_params() < model.count_params()
