"""Objects that Keras saves and loads by the arguments of their constructor, with no code of their own for it."""

import inspect

import keras


class Configurable:
    """A base whose `get_config` is its constructor's arguments, each kept under its own name.

    Subclasses register themselves with Keras under the name of their top-level package, so that `keras.saving` finds
    them in a fresh process once their module is imported.

    Example:
        >>> class Scale(Configurable):
        ...     def __init__(self, factor=2.0):
        ...         self.factor = factor
        >>> Scale.from_config(Scale(3.0).get_config()).factor
        3.0
    """

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        keras.saving.register_keras_serializable(cls.__module__.split(".")[0])(cls)

    @classmethod
    def _arguments(cls) -> list[str]:
        parameters = inspect.signature(cls.__init__).parameters.values()
        return [p.name for p in parameters if p.name != "self" and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]

    def get_config(self) -> dict:
        """The constructor's arguments, serialized."""
        return {name: keras.saving.serialize_keras_object(getattr(self, name)) for name in self._arguments()}

    @classmethod
    def from_config(cls, config: dict):
        """The inverse of `get_config`."""
        return cls(**{key: keras.saving.deserialize_keras_object(value) for key, value in config.items()})

    def copy(self):
        """A new object with the same arguments and no state."""
        return type(self).from_config(self.get_config())

    def __repr__(self) -> str:
        defaults = {p.name: p.default for p in inspect.signature(type(self).__init__).parameters.values()}
        given = [(name, getattr(self, name)) for name in self._arguments()]
        shown = ", ".join(f"{name}={value!r}" for name, value in given if repr(value) != repr(defaults[name]))
        return f"{type(self).__name__}({shown})"
