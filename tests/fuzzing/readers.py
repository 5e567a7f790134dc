"""All readers. To add one, add an entry to the file of its kind."""

from fuzzing import arrays, checkpoints, configs, labels, pictures, run_folders, shards

READERS = (
    *labels.READERS, *configs.READERS, *arrays.READERS, *pictures.READERS, *shards.READERS, *run_folders.READERS,
    *checkpoints.READERS,
)  # fmt: skip
