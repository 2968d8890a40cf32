"""The command line's options that name the store: the same words in every process that has one."""

import argparse


def add_store_options(parser: argparse.ArgumentParser) -> None:
    """`store`: a list of endpoints, None where none is given; `store_ca` to `store_password_file`: text, empty where none is given."""
    parser.add_argument("--store", action="append", metavar="HOST:PORT", help="an etcd endpoint; may be given several times")
    for option, metavar, text in (
        ("ca", "FILE", "the certificate authority of the store; without it: no TLS"),
        ("cert", "FILE", "this process's certificate for the store"),
        ("key", "FILE", "the key of --store-cert"),
        ("user", "NAME", "this process's user in the store; without it: a store without users"),
        ("password-file", "FILE", "the password of --store-user"),
    ):
        parser.add_argument(f"--store-{option}", default="", metavar=metavar, help=text)
