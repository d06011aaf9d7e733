"""When a run began, agreed on by all processes that were started for it."""

import os
import time

NAME = "FEWSHOT_STARTED"  # conf/train.yaml names the run folder by it
_FORMAT = "%Y-%m-%d_%H-%M-%S"


def agree_on_start() -> None:
    """Under torchrun or SLURM sets the time that names the run folder, the same in every process.

    Otherwise each would name one by its own clock. The first process tells the others, by the address at which they
    meet for training later on.
    """
    if NAME in os.environ or not {"TORCHELASTIC_RUN_ID", "SLURM_NTASKS"} & os.environ.keys():
        return
    from lightning.fabric.plugins.environments import ClusterEnvironment, SLURMEnvironment, TorchElasticEnvironment

    if TorchElasticEnvironment.detect():
        environment: ClusterEnvironment = TorchElasticEnvironment()
    elif SLURMEnvironment.detect():
        environment = SLURMEnvironment(auto_requeue=False)
    else:
        return
    if environment.world_size() > 1:  # one by itself, of a job array say, must find a name that no other has
        os.environ[NAME] = _agreed(environment)


def _agreed(environment) -> str:  # type: ignore[no-untyped-def]
    from torch.distributed import TCPStore

    global _store
    own = time.strftime(_FORMAT)
    first = environment.global_rank() == 0
    hosted = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    _store = TCPStore(
        environment.main_address,
        environment.main_port,
        environment.world_size(),
        is_master=first and not hosted,
        wait_for_workers=False,
        multi_tenant=True,  # training meets at the same address, from the same process
    )
    key = f"fewshot/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}/{NAME}"
    if first:
        _store.set(key, own)
    return _store.get(key).decode()


_store: object = None  # kept, since the first process answers the others for as long as it stands
