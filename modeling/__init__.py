from .configuration_ham10000 import Ham10000Config, Ham10000Error

__all__ = ["Ham10000Config", "Ham10000Error"]
