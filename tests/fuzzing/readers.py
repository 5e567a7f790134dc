"""All readers. To add one, add an entry to the file of its kind."""

from fuzzing import arrays, checkpoints, configs, labels, pictures, run_folders

READERS = (
    *labels.READERS, *configs.READERS, *arrays.READERS, *pictures.READERS, *run_folders.READERS, *checkpoints.READERS,
)  # fmt: skip
