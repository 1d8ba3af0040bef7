"""Staged networks: the usual ones by name, a user's own by the names of the modules that end its stages."""

from sftn_fast.models import (  # noqa: F401 (imported to register their networks)
    mobilenet,
    mobilenet_v1,
    resnet,
    shufflenet_v1,
    shufflenet_v2,
    timm_networks,
    vgg,
    wrn,
)
from sftn_fast.models.export import (
    check_not_of_export,
    load,
    load_export,
    load_weights,
    read_config,
    read_files,
    require_weights,
    save,
    to_files,
    verify,
)
from sftn_fast.models.original_names import export_state_dict
from sftn_fast.models.own_input import change_of_input, read_input
from sftn_fast.models.pretrained import default_weights, is_published, published_normalisation
from sftn_fast.models.registry import build, is_buildable, names, register
from sftn_fast.models.staged import Features, StagedNet
from sftn_fast.models.weight_files import WeightsError
from sftn_fast.models.wrap import as_staged

__all__ = [
    "Features",
    "StagedNet",
    "WeightsError",
    "as_staged",
    "build",
    "change_of_input",
    "check_not_of_export",
    "default_weights",
    "export_state_dict",
    "is_buildable",
    "is_published",
    "load",
    "load_export",
    "load_weights",
    "names",
    "published_normalisation",
    "read_config",
    "read_files",
    "read_input",
    "register",
    "require_weights",
    "save",
    "to_files",
    "verify",
]
