"""The private names of other libraries that this package uses, all of them in this room, and why.

A private name may go with any release. `tests/test_private_names.py` finds those that are used, compares them with this
list, and looks each of them up in the version that is installed.
"""

from typing import NamedTuple


class PrivateName(NamedTuple):
    """A name of a library that begins with an underscore.

    Attributes:
        name: its path; that of an attribute goes by way of the class which has it.
        version: of the library that it was checked against.
        why: what it is needed for, as there is no public name.
    """

    name: str
    version: str
    why: str


PRIVATE = (
    PrivateName(
        "lightning_fabric.utilities.distributed._set_num_threads_if_needed",
        "2.6",
        "children.Launcher does what Lightning's does before it starts processes",
    ),
    PrivateName(
        "pytorch_lightning.Trainer._checkpoint_connector",
        "2.6",
        "a checkpoint by the main process alone, when the others may be gone: the public method waits for them",
    ),
    PrivateName(
        "pytorch_lightning.Trainer._logger_connector",
        "2.6",
        "the metrics of the step that is saved reach the loggers only once the hooks of its batch are done",
    ),
    PrivateName(
        "pytorch_lightning.Trainer._signal_connector",
        "2.6",
        "no handlers of signals of Lightning's own beside `Interruption`",
    ),
    PrivateName(
        "pytorch_lightning.trainer.connectors.signal_connector._SignalConnector",
        "2.6",
        "its subclass registers no handlers",
    ),
    PrivateName(
        "pytorch_lightning.loops.training_epoch_loop._TrainingEpochLoop._broadcast_sigterm_tensor",
        "2.6",
        "asks before every step whether the main process got SIGTERM, and waits for the device",
    ),
    PrivateName(
        "pytorch_lightning.loops.fit_loop._FitLoop",
        "2.6",
        "its subclass begins with a validation where no step is left",
    ),
    PrivateName(
        "pytorch_lightning.loops.fit_loop._FitLoop._should_accumulate",
        "2.6",
        "whether a validation comes amid a step",
    ),
    PrivateName(
        "pytorch_lightning.loops.evaluation_loop._EvaluationLoop._has_run",
        "2.6",
        "whether the validation that a resumed run begins with is over",
    ),
    PrivateName(
        "pytorch_lightning.loops.evaluation_loop._EvaluationLoop._restart_stage",
        "2.6",
        "has a resumed run begin with a validation",
    ),
    PrivateName(
        "pytorch_lightning.strategies.Strategy._launcher",
        "2.6",
        "children.Launcher takes the place of Lightning's",
    ),
    PrivateName(
        "pytorch_lightning.strategies.launchers.subprocess_script._SubprocessScriptLauncher",
        "2.6",
        "base of children.Launcher, which says what happened when a process has ended",
    ),
    PrivateName(
        "pytorch_lightning.strategies.launchers.subprocess_script._SubprocessScriptLauncher._call_children_scripts",
        "2.6",
        "children.Launcher starts the processes as Lightning's does",
    ),
    PrivateName(
        "pytorch_lightning.strategies.DDPStrategy._layer_sync",
        "2.6",
        "whether batch norm is synchronised between processes",
    ),
    PrivateName(
        "pytorch_lightning.strategies.DDPStrategy._timeout",
        "2.6",
        "`processes.timeout_minutes` for whatever strategy the Trainer was asked for by name",
    ),
    PrivateName(
        "pytorch_lightning.loggers.WandbLogger._wandb_init",
        "2.6",
        "an argument that Lightning hands on unasked, and wandb warns of",
    ),
    PrivateName(
        "torch.nn.parallel.DistributedDataParallel._set_params_and_buffers_to_ignore_for_model",
        "2.14",
        "buffers that are the same on every process anyway are not sent in every step",
    ),
)
