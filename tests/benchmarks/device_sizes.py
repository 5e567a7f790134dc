"""How much the parts of `device.py` try: enough for a GPU, or so little that a test of the script takes seconds."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Size:
    """Amounts.

    Attributes:
        images: in a check of views. points: in a check of arithmetic on features. methods: in the checks of training
            and choosing; None: all that ship. steps: that are timed.
        labelled: images of a FixMatch step; seven times as many unlabelled ones. network: its backbone.
        two_views: images of a SimCLR step on `network`, of 32 × 32 pixels.
        vit: name, side and batch of the transformer.
        selection: points, labels and neighbours.
    """

    images: int
    points: int
    methods: int | None
    steps: int
    labelled: int
    network: str
    two_views: int
    vit: tuple[str, int, int]
    selection: tuple[int, int, int]


SIZES = {
    "full": Size(
        images=256,
        points=20_000,
        methods=None,
        steps=20,
        labelled=64,
        network="wrn_28_2",
        two_views=512,
        vit=("vit_small_patch16_224", 224, 256),
        selection=(1_281_167, 2_911, 20),
    ),
    "tiny": Size(
        images=6,
        points=300,
        methods=1,
        steps=1,
        labelled=2,
        network="small_w16",
        two_views=8,
        vit=("vit_tiny_patch16_224", 224, 2),
        selection=(400, 12, 5),
    ),
}
