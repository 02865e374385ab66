from . import imitation as imitation
from . import plateau as plateau
from . import pretrained as pretrained
from . import refinement as refinement
from . import reinforcement as reinforcement
from . import specialist as specialist
from . import universal as universal
from . import vector_environment as vector_environment
