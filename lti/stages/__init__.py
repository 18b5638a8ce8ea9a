"""The stages of the attack chain: what the workflow's rules run, one module a stage.

Each stage reads artifacts, calls the package, and writes artifacts that appear whole or
not at all. Settings arrive as JSON on the command line and are checked before any work.
"""
