from . import environment as environment
from . import execution as execution
from . import features as features
from . import information as information
