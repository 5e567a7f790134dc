"""Views: what a method does to an image before a network sees it. The recipes of the papers, by their names."""

from usl_lightning.data.views.recipes import (
    BYOLView,
    CoMatchStrong,
    Evaluation,
    ExemplarView,
    FixMatchStrong,
    MoCoV2View,
    Recipe,
    SeLaView,
    SimCLRView,
    SimSiamView,
    SmallGreyView,
    USLTView,
    Weak,
)

__all__ = [
    "BYOLView",
    "CoMatchStrong",
    "Evaluation",
    "ExemplarView",
    "FixMatchStrong",
    "MoCoV2View",
    "Recipe",
    "SeLaView",
    "SimCLRView",
    "SimSiamView",
    "SmallGreyView",
    "USLTView",
    "Weak",
]
