// CUDA kernels of the losses on similarities: one launch for the loss and the slopes' numbers of each row, and one more
// for each requested slope. ../relational_similarity.h has the formulas and the host code shared by all backends.
//
// Values are moved one by one: rows are not aligned for an odd B, and these passes are short compared with the matrix
// products before and after them.
#include <algorithm>
#include <limits>

#include "../relational_similarity.h"
#include "relational_similarity_pkt.cuh"
#include "relational_similarity_sp.cuh"

namespace sftn {
namespace {

template <class A>
SimilarityGram<A> gram_of(const Matrix& matrix) {
  return {matrix.data<A>(), matrix.stride};
}

// Memory of a call of either loss: numbers for each row, and partial sums of the loss.
template <class A>
class SimilarityLaunch {
 public:
  SimilarityLaunch(const GramPair& in, const SimilarityOutput& out, int64_t numbers)
      : scope_(in.student.tensor.get_device_index()),
        rows_(static_cast<unsigned>(in.n)),
        threads_(static_cast<unsigned>(std::min<int64_t>(kSimilarityThreads, round_up(in.n, simt::kWarpSize)))),
        loss_(out.loss),
        numbers_(empty(std::array<int64_t, 2>{numbers + 1, in.n}, in.dtype, out.loss)),
        arrivals_(scope_, out.loss) {}

  // The k-th number of each row, [B].
  A* numbers(int64_t k) const { return data_of<A>(numbers_) + (k + 1) * rows_; }

  SimilarityMean<A> mean() const { return {data_of<A>(loss_), data_of<A>(numbers_), arrivals_.counter()}; }

  template <class Kernel, class... P>
  void operator()(Kernel kernel, const P&... arguments) const {
    simt::launch(kernel, rows_, threads_, scope_.stream(), arguments...);
  }

 private:
  simt::DeviceScope scope_;
  unsigned rows_, threads_;
  Tensor loss_, numbers_;
  Arrivals arrivals_;
};

int checked_size(const GramPair& in) {
  constexpr int64_t kMax = std::numeric_limits<int>::max() / 2;  // a column past the last is still an int
  STD_TORCH_CHECK(in.n <= kMax, "similarity: at most ", kMax, " rows on this device, got ", in.n);
  return static_cast<int>(in.n);
}

struct SimilarityCuda {
  static void sp(const GramPair& in, const SimilarityOutput& out) {
    const int n = checked_size(in);
    visit_accumulator(in.dtype, [&](auto tag) {
      using A = typename decltype(tag)::type;
      const SimilarityLaunch<A> launch(in, out, 6);
      const SpSide<A> student{gram_of<A>(in.student), launch.numbers(0), launch.numbers(1), launch.numbers(2)};
      const SpSide<A> teacher{gram_of<A>(in.teacher), launch.numbers(3), launch.numbers(4), launch.numbers(5)};
      launch(sp_rows_kernel<A>, student, teacher, n, launch.mean());
      if (out.student_grad) launch(sp_slope_kernel<A>, student, teacher, n, out.student_data<A>());
      if (out.teacher_grad) launch(sp_slope_kernel<A>, teacher, student, n, out.teacher_data<A>());
    });
  }

  static void pkt(const GramPair& in, const PktInput& given, const SimilarityOutput& out) {
    const int n = checked_size(in);
    visit_accumulator(in.dtype, [&](auto tag) {
      using A = typename decltype(tag)::type;
      const SimilarityLaunch<A> launch(in, out, 4);
      const PktParams<A> params{
          {gram_of<A>(in.student), const_data_of<A>(given.student_norm), launch.numbers(0), launch.numbers(1)},
          {gram_of<A>(in.teacher), const_data_of<A>(given.teacher_norm), launch.numbers(2), launch.numbers(3)},
          static_cast<A>(given.eps),
          n};
      launch(pkt_rows_kernel<A>, params, launch.mean());
      if (out.student_grad) launch(pkt_slope_kernel<A, false>, params, out.student_data<A>());
      if (out.teacher_grad) launch(pkt_slope_kernel<A, true>, params, out.teacher_data<A>());
    });
  }
};

}  // namespace
}  // namespace sftn

STABLE_TORCH_LIBRARY_IMPL(SFTN_NAMESPACE, SFTN_DISPATCH_KEY, m) {
  m.impl("sp_forward", TORCH_BOX(&sftn::sp_forward<sftn::SimilarityCuda>));
  m.impl("pkt_forward", TORCH_BOX(&sftn::pkt_forward<sftn::SimilarityCuda>));
}
