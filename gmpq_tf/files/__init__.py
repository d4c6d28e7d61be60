"""Files that are written whole or not at all, and read with care."""

from gmpq_tf.files.arrays import DamagedFileError, read_arrays, write_arrays
from gmpq_tf.files.replacing import (
    FileWriteError,
    check_space,
    check_target,
    remove_temporaries,
    replace_file,
    replace_files,
    write_atomic,
)
from gmpq_tf.files.text import (
    MAX_TEXT_BYTES,
    append_jsonl,
    json_text,
    parse_json,
    read_jsonl,
    read_text,
    write_json,
)

__all__ = [
    "MAX_TEXT_BYTES",
    "DamagedFileError",
    "FileWriteError",
    "append_jsonl",
    "check_space",
    "check_target",
    "json_text",
    "parse_json",
    "read_arrays",
    "read_jsonl",
    "read_text",
    "remove_temporaries",
    "replace_file",
    "replace_files",
    "write_arrays",
    "write_atomic",
    "write_json",
]
