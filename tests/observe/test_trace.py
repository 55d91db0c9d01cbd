"""Readers of recorded traces."""

import gzip
import lzma
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from keyheat.errors import TraceError
from keyheat.model import Access
from keyheat.observe.trace import TraceReader

LIBCACHESIM = (
    "# time, object, size, next_access_vtime\n0, 13053225291711363978, 737, 13\n1, 61177, 248, 6570713\n"
)
META_1 = (
    "op_time,key,key_size,op,op_count,size,cache_hits,ttl,usecase,sub_usecase\n"
    "60,8213f,48,GET,3,87,1,0,3,3\n61,a5,24,SET,1,9,0,120,6,6\n"
)
META_2 = (
    "op_time,key,key_size,op,op_count,size,cache_hits,usecase,sub_usecase,ttl\n60,27,56,DELETE,1,21,2,2,4,0\n"
)
PLAIN = "time,op,key,size\n0.5,set,item:1,10\n0.75,get,item:1,0\n"


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def read(path: Path) -> list[Access]:
    with TraceReader(path) as reader:
        return list(reader)


COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "plain": bytes,
    "gzip": gzip.compress,
    "xz": lzma.compress,
    "zstd": zstandard.ZstdCompressor().compress,
}


@pytest.mark.parametrize("compression", COMPRESSORS)
def test_the_compression_is_told_from_the_content_not_the_name(tmp_path: Path, compression: str) -> None:
    path = written(tmp_path / "trace.bin", COMPRESSORS[compression](PLAIN.encode()))
    assert read(path) == [Access(0.5, "set", b"item:1", 10), Access(0.75, "get", b"item:1", 0)]


def test_a_libcachesim_line_is_a_read_of_its_object(tmp_path: Path) -> None:
    path = written(tmp_path / "t", LIBCACHESIM.encode())
    assert read(path) == [Access(0.0, "get", b"13053225291711363978", 737), Access(1.0, "get", b"61177", 248)]


def test_a_libcachesim_trace_needs_no_header(tmp_path: Path) -> None:
    path = written(tmp_path / "t", LIBCACHESIM.split("\n", 1)[1].encode())
    assert [access.size_bytes for access in read(path)] == [737, 248]


def test_a_meta_line_stands_for_as_many_accesses_as_it_counts(tmp_path: Path) -> None:
    path = written(tmp_path / "t", META_1.encode())
    assert read(path) == [Access(60.0, "get", b"8213f", 87)] * 3 + [Access(61.0, "set", b"a5", 9, 120)]


def test_meta_columns_are_read_by_name_in_any_order(tmp_path: Path) -> None:
    path = written(tmp_path / "t", META_2.encode())
    assert read(path) == [Access(60.0, "delete", b"27", 21)]


def test_a_twitter_line_carries_operation_and_ttl(tmp_path: Path) -> None:
    path = written(tmp_path / "t", b"0,nz:u:eeW511W3dcH3de3d15ec,22,304,8,get,0\n1,a,b,5,7,8,set,300\n")
    assert read(path) == [
        Access(0.0, "get", b"nz:u:eeW511W3dcH3de3d15ec", 304),
        Access(1.0, "set", b"a,b", 7, 300),
    ]


def test_an_orm_trace_is_one_object_for_four_bytes(tmp_path: Path) -> None:
    path = written(tmp_path / "t", struct.pack(">IIII", 0xF000_0001, 0x8800_0200, 0x8800_0400, 0xF000_0001))
    accesses = read(path)
    assert [access.key for access in accesses] == [b"orm:30:1", b"orm:17:512", b"orm:17:1024", b"orm:30:1"]
    assert {access.at_s for access in accesses} == {None}


def test_a_key_keeps_its_bytes(tmp_path: Path) -> None:
    path = written(tmp_path / "t", b"time,op,key,size\n0,get,caf\xe9\xff\x1b,1\n")
    assert read(path)[0].key == b"caf\xe9\xff\x1b"


def test_malformed_lines_are_counted_and_skipped(tmp_path: Path) -> None:
    lines = b"0,get,a,1\nnonsense\n1,get,b\n2,get\n3,get,c,many\n4,get,,1\n-5,get,d,1\n6,get,e,1\n"
    with TraceReader(written(tmp_path / "t", lines)) as reader:
        keys = [access.key for access in reader]
    assert keys == [b"a", b"b", b"e"]
    assert reader.report.malformed == 5
    assert len(reader.report.examples) == 3
    assert reader.report.examples[0].startswith("line 2: ")


def test_a_report_repeats_no_content_of_a_malformed_line(tmp_path: Path) -> None:
    with TraceReader(written(tmp_path / "t", b"0,get,a,1\n0,get,secret,alsosecret\n")) as reader:
        list(reader)
    assert "secret" not in str(reader.report)


def test_a_trace_without_one_good_line_is_an_error(tmp_path: Path) -> None:
    path = written(tmp_path / "t", b"time,op,key,size\nx,y\nz\n")
    with pytest.raises(TraceError, match="not one good access"):
        read(path)


def test_an_endless_line_is_one_malformed_line(tmp_path: Path) -> None:
    path = written(tmp_path / "t", b"0,get,a,1\n0,get," + b"x" * (3 << 20) + b",1\n1,get,b,1\n")
    with TraceReader(path) as reader:
        assert [access.key for access in reader] == [b"a", b"b"]
    assert reader.report.malformed == 1


@pytest.mark.parametrize("compress", [gzip.compress, lzma.compress], ids=["gzip", "xz"])
def test_a_cut_off_file_gives_what_can_be_read_and_says_so(
    tmp_path: Path, compress: Callable[[bytes], bytes]
) -> None:
    whole = "".join(f"{n},get,key:{n * 7919 % 10007},{n}\n" for n in range(50_000)).encode()
    packed = compress(whole)
    with TraceReader(written(tmp_path / "t", packed[: len(packed) // 2])) as reader:
        accesses = list(reader)
    assert 1000 < len(accesses) < 50_000
    assert reader.report.truncated is not None


@pytest.mark.parametrize(
    ("content", "words"), [(b"", "is empty"), (b"hello\nworld\n", "cannot tell the format")]
)
def test_what_is_no_trace_is_refused_at_once(tmp_path: Path, content: bytes, words: str) -> None:
    with pytest.raises(TraceError, match=words):
        TraceReader(written(tmp_path / "t", content))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"nowhere\.csv: No such file"):
        TraceReader(tmp_path / "nowhere.csv")


def test_reading_is_streamed(tmp_path: Path) -> None:
    path = written(tmp_path / "t", b"".join(b"%d,get,k,1\n" % n for n in range(200_000)))
    with TraceReader(path) as reader:
        next(iter(reader))
        assert reader.progress < 0.5
