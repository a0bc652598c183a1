"""No weight decay for some roles."""

from collections.abc import Sequence
from fnmatch import fnmatchcase

from runner.core.layout import Named, Role
from runner.core.mistake import nearest
from runner.groups import Groups


class NoDecay(Groups):
    """Weight decay 0 for tensors of some roles, and for those whose name fits a pattern.

    Decay pulls what scales or shifts activations towards 0 without making the network smoother. Common rules differ in
    what they spare: timm and most recipes of vision biases and the gains of normalisation, as the default does without
    `embedding`; nanoGPT all with one axis, which is `roles: [bias, norm, other]`.

    Parameters
    ----------
    roles : list, default [bias, norm, embedding]
        Of matrix, embedding, head, bias, norm, other (numbers and vectors of loss and risk); see
        `runner.core.layout.named`.
    patterns : list of str, default []
        Shell patterns for names: `body.0.*`.

    Raises
    ------
    ValueError
        A pattern that no tensor's name fits.
    """

    def __init__(self, roles: list[Role] = ["bias", "norm", "embedding"], patterns: list[str] = []):  # noqa: B006
        self.roles, self.patterns = roles, patterns

    def __call__(self, tensors: Sequence[Named]) -> list[tuple[float, float]]:
        names = [tensor.name for tensor in tensors]
        for pattern in self.patterns:
            if not any(fnmatchcase(name, pattern) for name in names):
                raise ValueError(f"no trainable tensor is called {nearest(pattern, names)}")
        spared = [t.role in self.roles or any(fnmatchcase(t.name, p) for p in self.patterns) for t in tensors]
        return [(1.0, 0.0 if one else 1.0) for one in spared]
