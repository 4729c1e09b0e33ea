"""The published README's name of dvscifar_prepare.py."""

from dvscifar_prepare import guard, main

if __name__ == "__main__":
    guard(main)
