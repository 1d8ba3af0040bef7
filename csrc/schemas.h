// The schemas of all ops, for the library that defines torch.ops.sftn_fast and for the emulator's copy of it.
#pragma once

#include "contrastive.h"
#include "contrastive_negatives.h"
#include "features_adaptation.h"
#include "features_attention.h"
#include "features_pointwise.h"
#include "features_pool.h"
#include "logits.h"
#include "logits_correlation.h"
#include "logits_divergence_passes.h"
#include "logits_transport.h"
#include "relational_rkd.h"
#include "relational_similarity.h"

namespace sftn {

template <class Library>
void define_ops(Library& m) {
  m.def(kAdaptedHintForwardSchema);
  m.def(kAdaptedHintBackwardSchema);
  m.def(kAttentionForwardSchema);
  m.def(kAttentionBackwardSchema);
  m.def(kContrastiveNormalizersSchema);
  m.def(kContrastiveForwardSchema);
  m.def(kContrastiveUpdateSchema);
  m.def(kDistForwardSchema);
  m.def(kDistBackwardSchema);
  m.def(kGramSchema);
  m.def(kLogitsBothSchema);
  m.def(kLogitsDivergenceSchema);
  m.def(kLogitsDivergenceForwardSchema);
  m.def(kLogitsDivergenceBackwardSchema);
  m.def(kLogitsForwardSchema);
  m.def(kLogitsBackwardSchema);
  m.def(kPktBothSchema);
  m.def(kPktForwardSchema);
  m.def(kPointwiseBothSchema);
  m.def(kPointwiseForwardSchema);
  m.def(kPointwiseBackwardSchema);
  m.def(kPoolForwardSchema);
  m.def(kPoolBackwardSchema);
  m.def(kRelationalRkdForwardSchema);
  m.def(kRelationalRkdBackwardSchema);
  m.def(kSampleNegativesSchema);
  m.def(kSpForwardSchema);
  m.def(kWkdMarginalsSchema);
  m.def(kWkdStepSchema);
  m.def(kWkdLossSchema);
  m.def(kWkdReverseSchema);
  m.def(kWkdGradientSchema);
}

}  // namespace sftn
