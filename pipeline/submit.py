"""Run the pipeline on the head node of a Ray cluster: `ray submit cluster.yaml pipeline/submit.py`."""

import sys

from pipeline.cluster.submit import main

if __name__ == "__main__":
    sys.exit(main())
