"""Which classes are for training, validation and test, by name; sorted, seeded, the same on every machine."""

import hashlib
from collections.abc import Callable
from functools import partial

import numpy as np

from fewshot.data.images import ImageSet
from fewshot.errors import UserError

SPLITS = ("train", "val", "test")
Split = dict[str, list[int]]  # split -> sorted indices of classes
_OWN = ("published", "folders")  # the rules that take the data set's own division

# The alphabets of O. Vinyals et al. (2016) as their followers share them: 1028/172/423 characters. One
# alphabet, Gurmukhi, is cut: its first 41 characters train, its last four test.
_VINYALS_VAL = frozenset({"Armenian", "Bengali", "Early_Aramaic", "Hebrew", "Mkhedruli_(Georgian)"})
_VINYALS_TEST = frozenset(
    {"Kannada", "Keble", "Malayalam", "Manipuri", "Mongolian", "Old_Church_Slavonic_(Cyrillic)", "Oriya"}
    | {"Sylheti", "Syriac_(Serto)", "Tengwar", "Tibetan", "ULOG"}
    | {f"Gurmukhi/character{number}" for number in range(42, 46)}
)


def split_classes(image_set: ImageSet, name: str, seed: int) -> Split:
    """Divides the classes of a data set by the rule called `name`.

    official: five sixths of the background part's alphabets train, the others validate, the evaluation part
        tests (Omniglot: 25, 5 and 20 alphabets).
    background_characters: of the background part's characters int(0.8 n) train, the others validate,
        alphabets shared (the homework's: 771 and 193); the evaluation part tests.
    random_characters: all characters shuffled; 1100, 100 and 423 of Omniglot's 1623, or that proportion.
    vinyals: the lists of Vinyals et al. 2016 (1028, 172, 423); Omniglot only.
    random_classes: all classes shuffled; 64 % train, 16 % validate and 20 % test, the proportion of Ravi and
        Larochelle (2017) on miniImageNet, but five classes or more in each, or as many as there are for all three.
    published: as the data set itself divides them (`ImageSet.parts`): by the lists of its authors (CIFAR-FS, FC100,
        miniImageNet).
    folders: another word for it, where that is said by folders: train, val and test with `data=folder`.

    Args:
        seed: decides which alphabets, characters or classes; `vinyals`, `published` and `folders` leave no choice.

    Raises:
        UserError: no such rule; a rule that asks for a division which the data set has not, or ignores the one
            that its owner gave it; too few classes.
    """
    if name not in _RULES:
        raise UserError(f"data.split={name} is not one of {', '.join(_RULES)}")
    if name not in _OWN and set(SPLITS) <= set(image_set.parts):
        raise UserError(
            f"data.split={name} divides the classes anew, but the data set itself divides them into train, val and "
            "test: choose data.split=published, or for folders of your own data.split=folders, or move all classes "
            "into one folder"
        )
    labels = _RULES[name](image_set, np.random.default_rng((seed, 0x5011)))
    return {split: [i for i, label in enumerate(labels) if label == split] for split in SPLITS}


def class_lists(image_set: ImageSet, split: Split) -> dict[str, dict[str, object]]:
    """The names of every split's classes and the sha256 of the list, one name a line."""
    names = {part: [image_set.names[i] for i in split[part]] for part in SPLITS}
    return {
        part: {
            "sha256": hashlib.sha256("\n".join(listed).encode(errors="surrogateescape")).hexdigest(),
            "classes": listed,
        }
        for part, listed in names.items()
    }


def _official(image_set: ImageSet, rng: np.random.Generator) -> list[str]:
    _need_background(image_set, "official")
    groups = sorted({_group(n) for n, p in zip(image_set.names, image_set.parts, strict=True) if p == "background"})
    held_out = max(1, round(len(groups) / 6))
    val = {groups[i] for i in rng.permutation(len(groups))[:held_out]}
    return [
        "test" if part == "evaluation" else "val" if _group(name) in val else "train"
        for name, part in zip(image_set.names, image_set.parts, strict=True)
    ]


def _background_characters(image_set: ImageSet, rng: np.random.Generator) -> list[str]:
    _need_background(image_set, "background_characters")
    background = [i for i, part in enumerate(image_set.parts) if part == "background"]
    train = {background[i] for i in rng.permutation(len(background))[: int(0.8 * len(background))]}
    return [
        "test" if part == "evaluation" else "train" if i in train else "val" for i, part in enumerate(image_set.parts)
    ]


def _random_characters(image_set: ImageSet, rng: np.random.Generator) -> list[str]:
    total = len(image_set.names)
    train, val = round(total * 1100 / 1623), round(total * 100 / 1623)
    rank = np.argsort(rng.permutation(total))
    return ["train" if r < train else "val" if r < train + val else "test" for r in rank]


def _vinyals(image_set: ImageSet, rng: np.random.Generator) -> list[str]:
    if "Gurmukhi/character42" not in image_set.names:
        raise UserError("data.split=vinyals lists characters of Omniglot: use it with data=omniglot")
    return [
        "val" if _group(name) in _VINYALS_VAL else "test" if {name, _group(name)} & _VINYALS_TEST else "train"
        for name in image_set.names
    ]


def _random_classes(image_set: ImageSet, rng: np.random.Generator) -> list[str]:
    total = len(image_set.names)
    if total < len(SPLITS):
        raise UserError(
            f"data.split=random_classes needs 3 classes or more, one to train, one to validate and one to test, but "
            f"{total} {'is' if total == 1 else 'are'} there: add classes"
        )
    # Not from data.n_way: then a change of ways at evaluation would move classes from training to testing.
    least = min(5, total // len(SPLITS))
    val, test = (max(least, round(share * total)) for share in (0.16, 0.20))
    rank = np.argsort(rng.permutation(total))
    return ["test" if r < test else "val" if r < test + val else "train" for r in rank]


def _published(image_set: ImageSet, rng: np.random.Generator, *, rule: str) -> list[str]:
    if not set(image_set.parts) <= set(SPLITS):
        raise UserError(
            f"data.split={rule} takes the folders train, val and test with data=folder, or the lists that a data set "
            "was published with, and this one has not all three of them, or others too: add them, or choose "
            "data.split=random_classes"
        )
    return list(image_set.parts)


def _need_background(image_set: ImageSet, rule: str) -> None:
    if "background" not in image_set.parts:
        raise UserError(
            f"data.split={rule} divides the background and the evaluation set of Omniglot or strokes, and this data "
            "set has none: choose data.split=random_classes"
        )


def _group(name: str) -> str:
    return name.rsplit("/", 1)[0]


_RULES: dict[str, Callable[[ImageSet, np.random.Generator], list[str]]] = {
    "official": _official,
    "background_characters": _background_characters,
    "random_characters": _random_characters,
    "vinyals": _vinyals,
    "random_classes": _random_classes,
    **{rule: partial(_published, rule=rule) for rule in _OWN},
}
