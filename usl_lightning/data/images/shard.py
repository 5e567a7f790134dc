"""What is in one shard."""

from dataclasses import dataclass, field


@dataclass
class Shard:
    """The image files of a shard, in its own order.

    Attributes:
        names: paths with `/`.
        offsets: where each begins: the byte of a tar file, the row of a Parquet file.
        sizes: bytes of each.
        labels: of each, a place in `texts`; -1 where there is none.
        texts: the labels that occur.
        labelled: what labels there are stands in the shard; folders within it are no classes.
        named: `texts` are the names of all classes, in label order.
        odd: what is called like an image and is none that can be read, and why; "" is the shard itself.
    """

    names: list[str] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    texts: tuple[str, ...] = ()
    labelled: bool = False
    named: bool = False
    odd: list[tuple[str, str]] = field(default_factory=list)
