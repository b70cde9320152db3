"""The child of a benchmark: `python -m lora_np.bench TASK`, a task as JSON; see `lora_np.bench.process`."""

import json
import sys

from .process import serve
from .sizes import Size, Task

if __name__ == "__main__":
    settings = json.loads(sys.argv[1])
    serve(Task(**{**settings, "size": Size(**settings["size"])}))
