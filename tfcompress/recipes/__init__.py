"""What recipes are made of: reading them, running them, and the shipped ones as YAML files. `tfcompress.recipe` has the classes."""
