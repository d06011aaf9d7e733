"""Which classes of published data sets are for training, validation and test, as their authors divided them."""

from collections.abc import Mapping

Lists = Mapping[str, tuple[str, ...]]  # split -> its classes, sorted

# The 20 superclasses of CIFAR-100 and their five classes each (A. Krizhevsky: Learning Multiple Layers of Features
# from Tiny Images, 2009). Its files number both by the alphabet.
SUPERCLASSES = {
    "aquatic_mammals": "beaver dolphin otter seal whale",
    "fish": "aquarium_fish flatfish ray shark trout",
    "flowers": "orchid poppy rose sunflower tulip",
    "food_containers": "bottle bowl can cup plate",
    "fruit_and_vegetables": "apple mushroom orange pear sweet_pepper",
    "household_electrical_devices": "clock keyboard lamp telephone television",
    "household_furniture": "bed chair couch table wardrobe",
    "insects": "bee beetle butterfly caterpillar cockroach",
    "large_carnivores": "bear leopard lion tiger wolf",
    "large_man-made_outdoor_things": "bridge castle house road skyscraper",
    "large_natural_outdoor_scenes": "cloud forest mountain plain sea",
    "large_omnivores_and_herbivores": "camel cattle chimpanzee elephant kangaroo",
    "medium_mammals": "fox porcupine possum raccoon skunk",
    "non-insect_invertebrates": "crab lobster snail spider worm",
    "people": "baby boy girl man woman",
    "reptiles": "crocodile dinosaur lizard snake turtle",
    "small_mammals": "hamster mouse rabbit shrew squirrel",
    "trees": "maple_tree oak_tree palm_tree pine_tree willow_tree",
    "vehicles_1": "bicycle bus motorcycle pickup_truck train",
    "vehicles_2": "lawn_mower rocket streetcar tank tractor",
}
_CIFAR100 = {name: f"{group}/{name}" for group, names in SUPERCLASSES.items() for name in names.split()}
CIFAR100 = tuple(_CIFAR100[name] for name in sorted(_CIFAR100))  # "superclass/class" in the order of its numbers


def _lists(val: str, test: str, by: int) -> Lists:
    """The lists of CIFAR-100 with these superclasses (`by` = 0) or classes (1) held out."""
    held_out = {"val": set(val.split()), "test": set(test.split())}
    split_of = {
        name: next((split for split, names in held_out.items() if name.split("/")[by] in names), "train")
        for name in sorted(CIFAR100)
    }
    return {split: tuple(n for n in split_of if split_of[n] == split) for split in ("train", "val", "test")}


# L. Bertinetto, J. Henriques, P. Torr, A. Vedaldi: Meta-learning with differentiable closed-form solvers. ICLR 2019.
CIFAR_FS = _lists(
    val="beaver beetle butterfly camel cattle crab crocodile flatfish lamp maple_tree motorcycle otter sea shark "
    "television tractor",
    test="baby bed bicycle chimpanzee fox leopard man pickup_truck plain poppy rocket rose snail sweet_pepper table "
    "telephone wardrobe whale woman worm",
    by=1,
)

# B. Oreshkin, P. Rodríguez López, A. Lacoste: TADAM: Task dependent adaptive metric for improved few-shot learning.
# NeurIPS 2018. Whole superclasses, so that test classes are far from those of training.
FC100 = _lists(
    val="large_carnivores large_omnivores_and_herbivores non-insect_invertebrates small_mammals",
    test="aquatic_mammals insects medium_mammals people",
    by=0,
)

# S. Ravi, H. Larochelle: Optimization as a Model for Few-Shot Learning. ICLR 2017. Names of ImageNet's (WordNet's).
_RAVI = {
    "train": """
n01532829 n01558993 n01704323 n01749939 n01770081 n01843383 n01910747 n02074367 n02089867 n02091831 n02101006
n02105505 n02108089 n02108551 n02108915 n02111277 n02113712 n02120079 n02165456 n02457408 n02606052 n02687172
n02747177 n02795169 n02823428 n02966193 n03017168 n03047690 n03062245 n03207743 n03220513 n03337140 n03347037
n03400231 n03476684 n03527444 n03676483 n03838899 n03854065 n03888605 n03908618 n03924679 n03998194 n04067472
n04243546 n04251144 n04258138 n04275548 n04296562 n04389033 n04435653 n04443257 n04509417 n04515003 n04596742
n04604644 n04612504 n06794110 n07584110 n07697537 n07747607 n09246464 n13054560 n13133613""",
    "val": """
n01855672 n02091244 n02114548 n02138441 n02174001 n02950826 n02971356 n02981792 n03075370 n03417042 n03535780
n03584254 n03770439 n03773504 n03980874 n09256479""",
    "test": """
n01930112 n01981276 n02099601 n02110063 n02110341 n02116738 n02129165 n02219486 n02443484 n02871525 n03127925
n03146219 n03272010 n03544143 n03775546 n04146614 n04149813 n04418357 n04522168 n07613480""",
}
MINIIMAGENET: Lists = {split: tuple(names.split()) for split, names in _RAVI.items()}
