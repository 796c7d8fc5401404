// Element types, checksums, atomic files, the HDF5 layer, metrics.
#include <hdf5.h>
#include <unistd.h>

#include <cmath>
#include <limits>
#include <thread>

#include "sparseattn/io/checksum.hpp"
#include "sparseattn/io/detail/h5.hpp"
#include "sparseattn/io/files.hpp"
#include "sparseattn/io/metrics.hpp"
#include "support.hpp"

namespace sparseattn {
namespace {

using namespace testing_io;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

TEST(DType, NamesAndSizes) {
    const std::vector<std::pair<DType, int>> all = {{DType::float32, 4}, {DType::float64, 8}, {DType::bfloat16, 2},
                                                    {DType::int32, 4},   {DType::int64, 8},   {DType::uint8, 1},
                                                    {DType::uint16, 2}};
    for (const auto& [type, size] : all) {
        EXPECT_EQ(size_of(type), size);
        EXPECT_EQ(parse_dtype(name(type)), type);
    }
    EXPECT_THAT(message_of<InvalidArgument>([] { return parse_dtype("half"); }),
                AllOf(HasSubstr("dtype is 'half'"), HasSubstr("one of float32, float64, bfloat16")));
}

TEST(Checksum, KnownValuesAndPieces) {
    EXPECT_EQ(to_hex(checksum("")), "2d06800538d394c2");
    EXPECT_EQ(parse_hex("2d06800538d394c2"), checksum(""));
    EXPECT_THROW(static_cast<void>(parse_hex("2d06800538d394c")), InvalidArgument);
    EXPECT_THROW(static_cast<void>(parse_hex("2d06800538d394cg")), InvalidArgument);
    const Tensor data = random_tensor("x", DType::uint8, {3000000}, 1);
    ChecksumStream stream;
    for (std::size_t at = 0, step = 1; at < data.bytes.size(); at += step, step = step * 3 + 1) {
        stream.add(data.bytes.data() + at, std::min(step, data.bytes.size() - at));
    }
    EXPECT_EQ(stream.value(), checksum(data.bytes.data(), data.bytes.size()));
    const TemporaryFolder root;
    write_plain(root / "x", std::string(reinterpret_cast<const char*>(data.bytes.data()), data.bytes.size()));
    EXPECT_EQ(file_checksum(root / "x"), stream.value());
    EXPECT_THAT(message_of<FileError>([&] { return file_checksum(root / "none"); }), HasSubstr("none"));
}

TEST(Files, AreReplacedAsAWhole) {
    const TemporaryFolder root;
    write_file_atomically(root / "a", "one");
    write_file_atomically(root / "a", std::string("t\0wo", 4));
    EXPECT_EQ(read_file(root / "a"), std::string("t\0wo", 4));
    EXPECT_THAT(message_of<FileError>([&] { write_file_atomically(root / "no/a", "x"); }),
                AllOf(HasSubstr("no/"), HasSubstr("No such file or directory")));
    EXPECT_THAT(message_of<FileError>([&] { return read_file(root / "b"); }), HasSubstr("cannot open: No such file"));
    fs::create_directory(root / "folder");
    EXPECT_THROW(write_file_atomically(root / "folder", "x"), FileError);
    EXPECT_EQ(std::distance(fs::directory_iterator(root), {}), 2);  // no temporary file is left
}

TEST(H5, BrainFloatIsATwoByteFloat) {
    const detail::h5::Handle type = detail::h5::make_type(DType::bfloat16);
    EXPECT_EQ(H5Tget_size(type.id()), 2U);
    size_t sign, exponent, exponent_bits, mantissa, mantissa_bits;
    ASSERT_GE(H5Tget_fields(type.id(), &sign, &exponent, &exponent_bits, &mantissa, &mantissa_bits), 0);
    EXPECT_THAT((std::vector<size_t>{sign, exponent, exponent_bits, mantissa, mantissa_bits}),
                ElementsAre(15, 7, 8, 0, 7));
    EXPECT_EQ(H5Tget_ebias(type.id()), 127U);
    EXPECT_EQ(H5Tget_order(type.id()), H5T_ORDER_LE);
    // HDF5's own conversion knows the same numbers.
    for (const float value : {1.0F, -2.5F, 0.0F, 3.0e38F, 1.2e-38F, std::numeric_limits<float>::infinity()}) {
        float converted = 0;
        const bf16 half(value);
        std::memcpy(&converted, &half, 2);
        ASSERT_GE(H5Tconvert(type.id(), H5T_NATIVE_FLOAT, 1, &converted, nullptr, H5P_DEFAULT), 0);
        EXPECT_EQ(converted, static_cast<float>(half));
    }
}

TEST(H5, FailuresNameFileObjectAndReason) {
    const TemporaryFolder root;
    testing::internal::CaptureStderr();
    EXPECT_THAT(message_of<FileError>([&] { return detail::h5::File::open(root / "none.h5"); }),
                AllOf(HasSubstr("none.h5"), HasSubstr("No such file or directory")));
    EXPECT_THAT(message_of<FileError>([&] { return detail::h5::File::create(root / "no/x.h5"); }),
                AllOf(HasSubstr("no/x.h5"), HasSubstr("No such file or directory")));
    const auto file = detail::h5::File::create(root / "x.h5");
    EXPECT_THAT(message_of<FileError>([&] { return file->dataset("a/b"); }),
                HasSubstr("x.h5: a/b: there is no such dataset"));
    file->make_group("a");
    EXPECT_THAT(message_of<FileError>([&] { file->make_group("a"); }),
                AllOf(HasSubstr("x.h5: a: creating the group failed"), HasSubstr("name already exists")));
    EXPECT_THAT(message_of<FileError>([&] { return file->text_attribute("a", "b"); }),
                HasSubstr("a@b: the attribute is missing"));
    file->write_attribute("a", "number", std::int64_t(5));
    EXPECT_THAT(message_of<FileError>([&] { return file->text_attribute("a", "number"); }),
                HasSubstr("must be a string"));
    file->write_strings("s", {"x", "", "long text"});
    EXPECT_THAT(file->read_strings("s"), ElementsAre("x", "", "long text"));
    EXPECT_THAT(message_of<FileError>([&] { return file->read_integers("s"); }), HasSubstr("element type"));
    file->write_text("t", "");
    EXPECT_EQ(file->read_text("t"), "");
    file->write_integers("i", {});
    EXPECT_TRUE(file->read_integers("i").empty());
    file->close();
    // HDF5 itself printed nothing, and prints again when the application asks it.
    EXPECT_EQ(testing::internal::GetCapturedStderr(), "");
    testing::internal::CaptureStderr();
    H5Fopen((root / "none.h5").c_str(), H5F_ACC_RDONLY, H5P_DEFAULT);
    EXPECT_THAT(testing::internal::GetCapturedStderr(), HasSubstr("HDF5-DIAG"));
}

TEST(H5, OneThreadAtATime) {
    const TemporaryFolder root;
    const auto work = [&](int t) {
        for (int i = 0; i < 10; ++i) {
            const fs::path path = root / concat(t, "_", i, ".h5");
            const auto file = detail::h5::File::create(path);
            file->write_integers("i", std::vector<std::int64_t>{t, i});
            file->close();
            EXPECT_THAT(detail::h5::File::open(path)->read_integers("i"), ElementsAre(t, i));
        }
    };
    std::vector<std::thread> threads;
    for (int t = 0; t < 4; ++t) threads.emplace_back(work, t);
    for (std::thread& thread : threads) thread.join();
}

// --- Metrics -----------------------------------------------------------------------------------------------------

TEST(Metrics, RoundTrip) {
    const TemporaryFolder root;
    const fs::path file = root / "metrics.csv";
    std::vector<std::vector<double>> rows;
    const RandomStream stream(1, RandomPurpose::test, 0);
    {
        MetricsWriter writer(file, {"loss", "tokens"});
        for (std::uint64_t i = 0; i < 500; ++i) {
            const auto loss = static_cast<float>(stream.normal(i) * std::pow(10.0, static_cast<double>(i % 60) - 30));
            rows.push_back({static_cast<double>(i), static_cast<double>(loss), 1e12 + static_cast<double>(i)});
            writer.append(static_cast<std::int64_t>(i), std::span(rows.back()).subspan(1));
        }
    }
    const MetricsTable table = read_metrics(file);
    EXPECT_THAT(table.columns, ElementsAre("step", "loss", "tokens"));
    ASSERT_EQ(table.rows.size(), rows.size());
    for (std::size_t i = 0; i < rows.size(); ++i) {
        EXPECT_EQ(table.rows[i][0], rows[i][0]);
        EXPECT_EQ(static_cast<float>(table.rows[i][1]), static_cast<float>(rows[i][1]));
        EXPECT_EQ(table.rows[i][2], rows[i][2]);
    }
    EXPECT_THROW(static_cast<void>(table.column("speed")), InvalidArgument);
}

TEST(Metrics, EveryRowIsThereAtOnceAndContinues) {
    const TemporaryFolder root;
    const fs::path file = root / "metrics.csv";
    const double nan = std::numeric_limits<double>::quiet_NaN();
    {
        MetricsWriter writer(file, {"a", "b"});
        EXPECT_EQ(read_plain(file), "step,a,b\n");
        writer.append(1, std::vector<double>{0.5, nan});
        EXPECT_EQ(read_plain(file), "step,a,b\n1,0.5,nan\n");
        EXPECT_THROW(writer.append(2, std::vector<double>{1}), InvalidArgument);
    }
    MetricsWriter writer(file, {"a", "b"});
    writer.append(2, std::vector<double>{-0.1, std::numeric_limits<double>::infinity()});
    EXPECT_EQ(read_plain(file), "step,a,b\n1,0.5,nan\n2,-0.1,inf\n");
    const MetricsTable table = read_metrics(file);
    EXPECT_TRUE(std::isnan(table.rows[0][2]));
    EXPECT_TRUE(std::isinf(table.rows[1][2]));
}

TEST(Metrics, IsCutBackOnRestart) {
    const TemporaryFolder root;
    const fs::path file = root / "metrics.csv";
    MetricsWriter writer(file, {"a"});
    for (int step = 10; step <= 100; step += 10) writer.append(step, std::vector<double>{step / 3.0});
    const std::string before = read_plain(file);
    writer.cut_back(55);
    EXPECT_THAT(read_metrics(file).column("step"), ElementsAre(10, 20, 30, 40, 50));
    EXPECT_EQ(before.substr(0, read_plain(file).size()), read_plain(file));  // kept rows keep their bytes
    writer.append(60, std::vector<double>{1});
    EXPECT_THAT(read_metrics(file).column("step"), ElementsAre(10, 20, 30, 40, 50, 60));
    writer.cut_back(-1);
    EXPECT_EQ(read_plain(file), "step,a\n");
}

TEST(Metrics, HalfLinesAndForeignFiles) {
    const TemporaryFolder root;
    const fs::path file = root / "metrics.csv";
    write_plain(file, "step,a\n1,2\n2,3.");
    EXPECT_EQ(read_metrics(file).rows.size(), 1U);
    MetricsWriter(file, {"a"}).append(3, std::vector<double>{4});
    EXPECT_EQ(read_plain(file), "step,a\n1,2\n3,4\n");
    EXPECT_THAT(message_of<FileError>([&] { MetricsWriter(file, {"b"}); }),
                AllOf(HasSubstr("metrics.csv:1"), HasSubstr("'step,a'"), HasSubstr("'step,b'")));
    write_plain(file, "step,a\n1,2\n2,x\n");
    EXPECT_THAT(message_of<FileError>([&] { return read_metrics(file); }),
                AllOf(HasSubstr("metrics.csv:3: a is 'x'"), HasSubstr("must be a number")));
    write_plain(file, "step,a\n1,2,3\n");
    EXPECT_THAT(message_of<FileError>([&] { return read_metrics(file); }), HasSubstr(":2: has 3 values, must have 2"));
    write_plain(file, "time,a\n");
    EXPECT_THAT(message_of<FileError>([&] { return read_metrics(file); }), HasSubstr("first column is 'time'"));
    EXPECT_THROW(MetricsWriter(root / "m.csv", {"a,b"}), InvalidArgument);
    EXPECT_THAT(message_of<FileError>([&] { MetricsWriter(root / "no/m.csv", {"a"}); }), HasSubstr("no/"));
}

}  // namespace
}  // namespace sparseattn
