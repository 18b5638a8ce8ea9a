"""``python -m lti``: the same as the command ``lti``."""

from lti.cli import main

main()
