from . import imitation as imitation
from . import pretrained as pretrained
from . import refinement as refinement
from . import reinforcement as reinforcement
from . import universal as universal
from . import vector_environment as vector_environment
