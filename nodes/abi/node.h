/* node.h: the boundary between Kosmograph's host and its node libraries. This file is the
 * specification; the Rust crate beside it mirrors it, and both assert the same sizes and offsets.
 *
 * A node library is a shared library that exports one function,
 *
 *     const kg_library *kosmograph_library_v1(void);
 *
 * and is a family of nodes. A node is a function: values in, values out. Anything with a lifetime
 * is a value: a loader returns an object, the host keeps it for as long as the loader's inputs do
 * not change, a sampler receives it. There is no instance to create or destroy.
 *
 * Rules that hold everywhere
 *   Versions    The symbol's name carries the major version. Structs begin with their size in
 *               bytes and only grow at their end; a reader uses a field only if `size` covers it.
 *               What is optional is asked for by a name with a revision ("denoiser/1"); a changed
 *               meaning gets a new revision, never an old one.
 *   Ownership   Whoever allocated frees. Arguments are borrowed for the duration of the call:
 *               who wants to keep one retains it. A value that is written to `outputs` carries one
 *               reference, which passes to the caller.
 *   Counting    retain and release may be called from any thread; everything reachable through
 *               a value is immutable from the moment it is handed over.
 *   Threads     Each function says who may call it. [call]: one thread at a time, the one on which the
 *               host called `run`, an extension or an interface, or one that the callee waits for.
 *               [any]: any thread, several at once.
 *   Place       A tensor says where it lies, and gives itself elsewhere: kg_tensor.view. Who knows the CPU's
 *               memory alone asks kg_tensor_cpu and may give out tensors that lie there. Who took no notice
 *               of places, a library built before 1.2 or an interface without KG_ANYWHERE, is given tensors
 *               on the CPU alone, whoever calls; and what is given to it lies there where the property
 *               "tensors" does not say "anywhere".
 *   Errors      A function that fails says why in one sentence through kg_context.fail, then
 *               returns KG_ERROR. The host copies the sentence. No state is kept per thread.
 *   Unwinding   No exception or panic may cross this boundary, in either direction.
 *   Unloading   A library is never unloaded: what it hands out as `const` lives as long as the process.
 *   Strings     UTF-8, with a length, not necessarily ending in NUL.
 */
#ifndef KG_NODE_H
#define KG_NODE_H

#include <stddef.h>
#include <stdint.h>

#include "dlpack.h"

#ifdef __cplusplus
extern "C" {
#endif

#define KG_ABI_MAJOR 1
#define KG_ABI_MINOR 2
#define KG_LIBRARY_SYMBOL "kosmograph_library_v1"

typedef int32_t kg_status;
#define KG_OK 0
#define KG_ERROR 1     /* kg_context.fail was called with the reason */
#define KG_CANCELLED 2 /* because kg_context.progress asked for it */

/* Borrowed text. `ptr` may be NULL when `len` is 0. */
typedef struct kg_str {
  const char *ptr;
  size_t len;
} kg_str;

/* ---- Values ------------------------------------------------------------------------------- */

/* What every counted thing begins with. A new one has one reference. With the last one it goes, and with
 * it all that it points at. */
typedef struct kg_counted {
  uint32_t size; /* of the whole struct that begins here */
  uint32_t reserved;
  void (*retain)(struct kg_counted *self);  /* [any] adds a reference */
  void (*release)(struct kg_counted *self); /* [any] gives one back; the caller touches `self` no more */
} kg_counted;

typedef uint32_t kg_kind;
#define KG_NONE 0   /* an optional input that is not there */
#define KG_BOOL 1   /* as.boolean: 0 or 1 */
#define KG_INT 2    /* as.integer; read as.natural where the input's range is unsigned (seeds) */
#define KG_FLOAT 3  /* as.number */
#define KG_STRING 4 /* as.string */
#define KG_LIST 5   /* as.list */
#define KG_MAP 6    /* as.map */
#define KG_TENSOR 7 /* as.tensor */
#define KG_OBJECT 8 /* as.object */

typedef struct kg_string kg_string;
typedef struct kg_list kg_list;
typedef struct kg_map kg_map;
typedef struct kg_tensor kg_tensor;
typedef struct kg_object kg_object;

/* A tagged union of 16 bytes. Kinds from KG_STRING on point at something counted. */
typedef struct kg_value {
  kg_kind kind;
  uint32_t reserved; /* 0 */
  union {
    int64_t boolean;
    int64_t integer;
    uint64_t natural;
    double number;
    kg_string *string;
    kg_list *list;
    kg_map *map;
    kg_tensor *tensor;
    kg_object *object;
    kg_counted *counted; /* any of the five above */
  } as;
} kg_value;

struct kg_string {
  kg_counted base;
  kg_str text;
};

struct kg_list {
  kg_counted base;
  const kg_value *items; /* owned by the list */
  size_t count;
};

/* Pairs in a fixed order; keys are unique. */
struct kg_map {
  kg_counted base;
  const kg_str *keys;
  const kg_value *values;
  size_t count;
};

/* A counted tensor. `dl` is its DLPack view, borrowed for as long as a reference is held: read
 * dl->dl_tensor, never call dl->deleter (it belongs to the kg_tensor). dl_tensor.device says where it
 * lies: numbers on a GPU are no memory of the CPU's. They are all there: whoever hands a tensor out has
 * waited for the device.
 *
 * `to_dlpack` [any] returns a new managed tensor over the same memory that holds a reference of its
 * own; its consumer calls its deleter once, on any thread. This is what torch.from_dlpack and numpy take.
 * NULL when there is no memory for it.
 *
 * `view` [any] gives the same tensor on a device, by DLPack's type and number: `dl` where it lies there
 * already, else a copy that is made at the first question and kept with the tensor. Borrowed, as `dl`
 * is. NULL where the library cannot reach that device, or has no memory. The function itself may be NULL
 * where a tensor lies on the CPU and can be had nowhere else. A tensor of a header before 1.2 ends
 * before it: its size tells. */
struct kg_tensor {
  kg_counted base;
  const DLManagedTensorVersioned *dl;
  DLManagedTensorVersioned *(*to_dlpack)(kg_tensor *self);
  const DLTensor *(*view)(kg_tensor *self, int32_t device_type, int32_t device_id);
};

struct kg_context;

#define KG_ANYWHERE 1 /* it looks where the tensors lie that it is called with */

/* An interface of an object is a function of values by name: a map in, a map out. Which keys there are,
 * and which may be absent, stands below for each. Keys that it does not know it passes over, so that a
 * caller of tomorrow may say more; "describe/1" says which optional keys an object understands.
 *   call    [call], by the host or by another library from within its own `run`, with the context that
 *           that was given or one of its own making
 *   self    the object, alive during the call
 *   context borrowed for the call
 *   input   borrowed for the call, never NULL
 *   output  where a map is written when the call returns KG_OK; its one reference passes to the caller
 * The struct itself lives as long as the process. */
typedef struct kg_interface {
  uint32_t size;
  uint32_t reserved;
  kg_status (*call)(kg_object *self, const struct kg_context *context, const kg_map *input,
                    kg_map **output);
  uint64_t flags; /* KG_ANYWHERE or 0. By its size an interface is told from a draft's, which took arrays */
} kg_interface;

/* Something with behaviour: MODEL, CLIP, VAE … `query` [any] returns the interface of that name, or
 * NULL; the result lives as long as the process and is used with this object alone. `id` is borrowed for
 * the call. */
struct kg_object {
  kg_counted base;
  kg_str type; /* the socket type it fits, "MODEL" */
  const kg_interface *(*query)(kg_object *self, kg_str id);
};

/* ---- Interfaces of objects -------------------------------------------------------------------
 *
 * What goes in and comes out, by name. A name in a shape stands for the same number in the whole call,
 * 8H is eight times it, * is any number. A key with ? may be absent. Tensors are f32 and lie anywhere (see
 * Place above): the property "device" says where to compute, not where they lie. T tokens, D their width.
 * The same as data, for programs: table.rs beside this file; a test holds the two together.
 *
 * "denoiser/1" (MODEL): one evaluation of the noise predictor.
 *     in   x TENSOR [B,C,H,W]
 *          timestep TENSOR [B], 0 ... train steps - 1, fractions allowed, or what "timesteps" of "describe/1" says
 *          context TENSOR [B,T,D]
 *          residuals? LIST of TENSOR, the sum of what ControlNets return for this call: one per skip
 *              connection in the order of the encoder, the middle's last
 *          pooled? TENSOR [B,P], the text's pooled vector
 *          sizes? TENSOR [B,6] or [B,5], as SDXL has them: height and width of the original, top and left of
 *              the crop, height and width of the target; its refiner an aesthetic score for the target
 *          features? NAMED TENSOR [*,*,*,*], what T2I-Adapters return for this call, with the rows of x or one: by
 *              diffusers' name of a block, "down_blocks.0" or "mid_block", added to what its last attention
 *              gives, or to what the block gives where it has none, and in the skip connection of that place
 *          extra_tokens? LIST of MAP {tokens TENSOR [*,*,*], keys? NAMED TENSOR [*,*,*],
 *              values? NAMED TENSOR [*,*,*], weight? FLOAT, mask? TENSOR [*,*,*]}, what every cross-attention
 *              reads beside the context, with a softmax of its own and the rows of x or one: its result times
 *              the weight (1 when absent) and the mask over the picture is added. Where there are keys and
 *              values, projected already, by the path of a layer of "cross_attentions" in "describe/1", those
 *              layers take them instead of the tokens, and others take nothing
 *          rows? LIST of TEXT, of each row of x "positive" or "negative"
 *     out  prediction TENSOR [B,*,H,W], of the kind that "describe/1" names
 * "control/1" (CONTROL_NET): the residuals that a ControlNet adds.
 *     in   x TENSOR [B,C,H,W]
 *          timestep TENSOR [B]
 *          context TENSOR [B,T,D]
 *          hint TENSOR [*,3,8H,8W] in 0..1. It may have fewer rows than x, b that divide its B: row i takes
 *              hint i mod b
 *          strength FLOAT
 *          guess? BOOL, residuals grow with depth; such a call has the rows of the conditional half alone
 *          pooled? TENSOR [B,P]
 *          sizes? TENSOR [B,6] or [B,5]
 *     out  residuals LIST of TENSOR, as above; none where there are features alone
 *          features? NAMED TENSOR [*,*,*,*], as above
 * "control_of/1" (MODEL): a ControlNet made of the contracting half of the model's own U-Net; the network is shared.
 *     in   weights NAMED TENSOR, by diffusers' names of a ControlNet's tensors, in the place of the U-Net's or beside
 *              them
 *          differences? NAMED TENSOR, added to the U-Net's tensor, where it has one of that name
 *          up? NAMED TENSOR, by a weight's name [O,R] or [O,R,1,1]: up times down is added to it
 *          down? NAMED TENSOR, by the same names [R,I] or [R,I,kH,kW]
 *     out  control_net OBJECT CONTROL_NET
 * "base_model/1" (CONTROL_NET): the ControlNet that one that is said as changes of a U-Net is of a model. Who samples
 *          asks for it before "control/1", where it is offered.
 *     in   model OBJECT MODEL
 *     out  control_net OBJECT CONTROL_NET
 * "control_type/1" (CONTROL_NET): the same network told which of the kinds of hint that it knows it is given; the
 *          network is shared, and the object itself stays what it is.
 *     in   type INT, counted from 0, or less than that for none
 *     out  control_net OBJECT CONTROL_NET
 * "model_sampling/1" (MODEL): the same model, sampled in another way; the network is shared, and the object itself
 *          stays what it is.
 *     in   description TEXT, a JSON object: what "describe/1" of the other says instead, of "prediction",
 *              "alphas_cumprod", "timesteps", "consistency", "reuse", "differential", "latent_mean" and
 *              "latent_std"
 *     out  model OBJECT MODEL
 * "patch/1" (MODEL): the same model with changes inside its U-Net; the object itself stays what it is. A
 *          model refuses, by its name, a kind or a block that it does not have.
 *     in   patches LIST of MAP {kind TEXT, patch OBJECT PATCH, blocks? LIST of TEXT, start? FLOAT, end? FLOAT,
 *              wants_unconditional? BOOL}
 *              kind "self_attention", "cross_attention", with an "attention_patch/1"; "block_input",
 *              "block_output", "skip" (what the decoder takes from the encoder), "below" (what a block of the
 *              encoder hands on below it, its skip connection taken), with a "block_patch/1";
 *              "between_attentions" (GLIGEN), of a transformer block, with a "tokens_patch/1";
 *              "sides", with a "sides_patch/1", "guide", in the place of plain guidance, of which the last
 *              alone acts, and "guidance", behind it, with a "guidance_patch/1", which wants x0 of
 *              the negative side where wants_unconditional says so, and else has it where guidance needs it.
 *              blocks, all when absent, by diffusers' names, "down_blocks.1.attentions.0", "mid_block",
 *              "up_blocks.2": a place counts with all that is within it. start and end as in a CONTROL. Of
 *              several at one place each is given what the one before it made; an attention_patch has for
 *              its ATTENTION the one before it.
 *     out  model OBJECT MODEL
 * "attention_patch/1" (PATCH): in the place of one attention (ToMe, HyperTile, PAG, SAG, hypernetworks).
 *     in   x TENSOR [B,N,D], what would be attended from
 *          context TENSOR [B,T,E], what would be attended to; x itself in self-attention
 *          value_context? TENSOR [B,T,E], what the values would be made of, where that is not context
 *          attention OBJECT ATTENTION, the layer as it is
 *          block TEXT
 *          height INT, of the tokens of x as a picture
 *          width INT
 *          sigma FLOAT
 *          rows LIST of TEXT, of each row of x "positive" or "negative"; none where nobody said it
 *          latent_height? INT, of the latents that the U-Net is given
 *          latent_width? INT
 *     out  x TENSOR [B,N,D]
 * "attention/1" (ATTENTION): a layer with its own projections.
 *     in   x TENSOR [B,N,D]
 *          context? TENSOR [B,T,E], x itself when absent
 *          value_context? TENSOR [B,T,E], what the values are made of; context when absent
 *          keys? TENSOR [B,S,E], further keys, projected already
 *          values? TENSOR [B,S,E], and their values
 *          wants_weights? BOOL, whether weights are asked for
 *     out  x TENSOR [B,N,D]
 *          weights? TENSOR [B,A,N,*], of A heads, where the layer gives them
 * "tokens_patch/1" (PATCH): the tokens of a transformer block between its two attentions (GLIGEN).
 *     in   x TENSOR [B,N,D]
 *          block TEXT
 *          height INT, of the tokens of x as a picture
 *          width INT
 *          sigma FLOAT
 *          rows LIST of TEXT, as above
 *          latent_height? INT, of the latents that the U-Net is given
 *          latent_width? INT
 *     out  x TENSOR [B,N,D]
 * "grounding/1" (GLIGEN): patches of a U-Net for boxes that say what is where.
 *     in   boxes LIST of MAP {text TENSOR [1,*], height INT, width INT, y INT, x INT}, text the pooled vector of a
 *              CLIP, the others in latent pixels
 *     out  patches LIST of MAP {kind TEXT, patch OBJECT PATCH, blocks? LIST of TEXT, start? FLOAT, end? FLOAT,
 *              wants_unconditional? BOOL}, for "patch/1"
 * "style_model/1" (STYLE_MODEL): a picture's style as tokens behind those of a text.
 *     in   last_hidden_state TENSOR [B,T,D], of "clip_vision/1"
 *     out  tokens TENSOR [B,*,*]
 * "photo_maker/1" (PHOTOMAKER): a person in the place of a word of a text.
 *     in   image TENSOR [B,H,W,1] or [B,H,W,3] or [B,H,W,4], pictures of the person
 *          context TENSOR [1,T,E]
 *          at INT, the first of the tokens that they take the place of, one each
 *     out  context TENSOR [1,T,E]
 * "block_patch/1" (PATCH): what a block is given or gives (FreeU, T2I-Adapter). The picture may change its size
 *          "below" and, to that of the skip connection, at a "skip".
 *     in   x TENSOR [B,C,H,W]
 *          skip? TENSOR [B,S,*,*], at a "skip"
 *          block TEXT
 *          sigma FLOAT
 *          rows LIST of TEXT, as above
 *     out  x TENSOR [B,C,*,*]
 *          skip? TENSOR [B,S,*,*]
 * "sides_patch/1" (PATCH): the sides of guidance before it puts them together (TCFG, FreSca).
 *     in   x TENSOR [B,C,H,W], x0 and noise of the deviation sigma
 *          sigma FLOAT
 *          conditional TENSOR [B,C,H,W], x0 of the positive side
 *          unconditional? TENSOR [B,C,H,W], of the negative
 *     out  conditional TENSOR [B,C,H,W]
 *          unconditional? TENSOR [B,C,H,W], as it was when absent
 * "guidance/1" (MODEL): how x0 of the sides of guidance is put together, where that is not all of it; who samples
 *          asks, and applies them in their order.
 *     out  patches LIST of MAP {kind TEXT, patch OBJECT PATCH, blocks? LIST of TEXT, start? FLOAT, end? FLOAT,
 *              wants_unconditional? BOOL}, of the kinds "sides", "guide" and "guidance"
 * "guidance_patch/1" (PATCH): what guidance makes of the sides (PerpNeg and a rescaled guidance as "guide", PAG, SAG).
 *     in   x TENSOR [B,C,H,W], x0 and noise of the deviation sigma
 *          sigma FLOAT
 *          conditional TENSOR [B,C,H,W], x0 of the positive side
 *          unconditional? TENSOR [B,C,H,W], of the negative
 *          denoised TENSOR [B,C,H,W], what was made of them so far
 *          cfg FLOAT
 *          sides OBJECT SIDES, to ask for more
 *     out  denoised TENSOR [B,C,H,W]
 * "sides/1" (SIDES): x0 of one side of guidance, wherever it is asked for.
 *     in   x TENSOR [B,C,H,W]
 *          sigma FLOAT
 *          side TEXT, "positive" or "negative"
 *          conditioning? LIST of ANY, a CONDITIONING, to be asked as that side in the place of its own
 *          patches? LIST of MAP {kind TEXT, patch OBJECT PATCH, blocks? LIST of TEXT, start? FLOAT, end? FLOAT,
 *              wants_unconditional? BOOL}, put on the model for this once, as by "patch/1"
 *     out  denoised TENSOR [B,C,H,W]
 * "text_encoder/1" (CLIP): text to what stands in the place of the cross-attention's context.
 *     in   text TEXT
 *          texts? NAMED TEXT, where several encoders are given several texts: by the encoder's name ("l", "g"),
 *              instead of text
 *     out  context TENSOR [1,T,D]
 *          pooled? TENSOR [1,P]
 * "text_layers/1" (CLIP): the same encoder ending at an earlier layer; the network is shared.
 *     in   stop_at_clip_layer INT, -1 the last, -2 the one before it
 *     out  clip OBJECT CLIP
 * "clip_vision/1" (CLIP_VISION): pictures as CLIP sees them.
 *     in   image TENSOR [B,H,W,1] or [B,H,W,3] or [B,H,W,4] in 0..1
 *          crop BOOL, the middle square, else the whole, squeezed
 *     out  last_hidden_state TENSOR [B,T,D]
 *          penultimate_hidden_states TENSOR [B,T,D]
 *          image_embeds TENSOR [B,P]
 * "vae_decode/1" (VAE)
 *     in   latents TENSOR [B,C,H,W], scaled as the denoiser wants them
 *     out  image TENSOR [B,*,*,3] in 0..1
 * "vae_encode/1" (VAE)
 *     in   image TENSOR [B,H,W,3] in 0..1
 *     out  latents TENSOR [B,*,*,*], scaled, the mode of the posterior
 * "vae_decode_tiled/1" (VAE): in tiles that fade into each other, or whole where a picture fits into half a tile.
 *     in   latents TENSOR [B,C,H,W]
 *          tile INT, in latent pixels
 *          overlap INT, less than half of tile
 *     out  image TENSOR [B,*,*,3]
 * "vae_encode_tiled/1" (VAE)
 *     in   image TENSOR [B,H,W,3]
 *          tile INT
 *          overlap INT
 *     out  latents TENSOR [B,*,*,*]
 * "upscale/1" (UPSCALE_MODEL): larger pictures, each side as many times as "describe/1" says under "scale".
 *     in   image TENSOR [B,H,W,3] in 0..1
 *          tile? INT, a picture of longer sides may be worked on in square tiles of this side that fade into
 *              each other, smaller ones where memory is short
 *          overlap? INT, what neighbours share, less than tile
 *     out  image TENSOR [B,*,*,3] in 0..1
 * "features/1" (FEATURES): pictures, or a text, as a network sees them that pictures are measured with; its own way to
 * the pixels is inside.
 *     in   image? TENSOR [B,H,W,1] or [B,H,W,3] or [B,H,W,4] in 0..1
 *          text? TEXT, where there is no image
 *     out  features TENSOR [*,F], a row for each picture, or one
 * "image_encoder/1" (KOSMOS, IMAGE_ENCODER): pictures to image tokens.
 *     in   image TENSOR [B,H,W,3] in 0..1
 *     out  tokens TENSOR [B,Q,D]
 * "interleave/1" (KOSMOS): text with <i> marks and the tokens of one picture for each mark.
 *     in   text TEXT
 *          images LIST of TENSOR [1,Q,D]
 *     out  hidden_states TENSOR [1,T,*]
 *          mask TENSOR [1,T], 1 where the token counts
 * "align/1" (KOSMOS): hidden states in CLIP's language.
 *     in   hidden_states TENSOR [B,T,D]
 *          mask TENSOR [B,T]
 *     out  context TENSOR [B,*,*]
 * "lora/1" (MODEL, CLIP): the same with a LoRA put on: W becomes W + strength * scale * up * down for the
 *          weight W of every layer it names. The object itself stays what it is.
 *     in   layers NAMED MAP {up TENSOR [*,*] or [*,*,1,1], down TENSOR [*,*] or [*,*,*,*],
 *              mid? TENSOR [*,*,*,*], scale FLOAT}, by the modules' paths as diffusers
 *              ("down_blocks.0.attentions.0.proj_in") and transformers
 *              ("text_model.encoder.layers.0.self_attn.q_proj") name them: up [O,R] or [O,R,1,1], down [R,I]
 *              or [R,I,kH,kW], mid [R,R,kH,kW], between the two where down is 1 x 1
 *          strength FLOAT, of any sign
 *     out  object OBJECT MODEL or CLIP, of the same type
 *          absent LIST of TEXT, the paths that it has no such module for. A layer that fits by its path and
 *              not by its shape is an error.
 * "lora/2" (MODEL, CLIP): "lora/1" for every kind of layer.
 *     in   layers NAMED MAP {factors NAMED TENSOR, alpha? FLOAT}, by the same paths; a CLIP with two text
 *              encoders has those of the second under "text_encoder_2.". Which factors a layer has says its
 *              kind, and they are in the shapes of LyCORIS' files: up, down, mid; hada_w1_a, hada_w1_b,
 *              hada_w2_a, hada_w2_b, hada_t1, hada_t2; lokr_w1, lokr_w1_a, lokr_w1_b, lokr_w2, lokr_w2_a,
 *              lokr_w2_b, lokr_t2; a1, a2, b1, b2 (GLoRA); oft_blocks, rescale (OFT, BOFT); ia3, on_input
 *              (not 0: ia3 is along the inputs); dora_scale or PEFT's magnitude beside any of these; diff,
 *              w_norm (added to the weight), diff_b, b_norm (to the bias); set_weight (instead of the
 *              weight). The formulas are ComfyUI's.
 *          strength FLOAT, of any sign
 *     out  object OBJECT MODEL or CLIP, of the same type
 *          absent LIST of TEXT, the paths that it has no such module for, "PATH.bias" where only the bias
 *              is missing
 * "weights/1" (MODEL, CLIP, VAE): the numbers of a network as they are in force, LoRAs and merges included. Names
 *          are diffusers' and transformers'; those of SDXL's larger text encoder begin with "text_encoder_2.".
 *     in   name? TEXT, of the tensor that is asked for
 *     out  tensors? NAMED MAP {shape LIST of INT, type TEXT}, all that there are, when no name is given; type is what
 *              the file has them in: "F32", "F16" or "BF16", "F16" for what has fewer bits
 *          tensor? TENSOR, the one that is asked for
 * "merge/1" (MODEL, CLIP): the same with tensors W that become own * W + other * V, V those of the same names of
 *          another object's "weights/1", computed at the first use or before. The object itself stays what it is.
 *     in   tensors NAMED MAP {own FLOAT, other? FLOAT}, by the names of "weights/1"
 *          other? OBJECT MODEL or CLIP, of the same type; where there is none W becomes own * W
 *     out  object OBJECT MODEL or CLIP, of the same type
 *          absent LIST of TEXT, the names that one of the two does not have, or has in another shape: these stay
 *              what they are
 * "latent_operation/1" (LATENT_OPERATION): what is done to latents.
 *     in   latents TENSOR [B,C,H,W]
 *     out  latents TENSOR [B,C,H,W]
 * "train_lora/1" (MODEL): a LoRA of its network, trained on latents and on what steers it towards them. The
 *          object itself stays what it is.
 *     in   examples LIST of MAP {latents TENSOR [1,*,*,*], context TENSOR [1,*,*], pooled? TENSOR [1,*],
 *              sizes? TENSOR [1,*]}, the latents at the network's scale, the rest as "denoiser/1" takes it
 *          settings TEXT, a JSON object: "kind" ("lora", "loha", "lokr"), "rank", "steps" (updates), "batch"
 *              (examples of a pass), "accumulate" (passes of an update), "optimiser" ("adamw", "adam", "sgd",
 *              "rmsprop"), "learning_rate", "loss" ("mse", "l1", "huber") of x0, "seed", "recompute" (whether
 *              what lies between blocks is computed again for the gradients instead of kept)
 *          layers? NAMED MAP {factors NAMED TENSOR, alpha? FLOAT}, as in "lora/2": what it begins with
 *     out  layers NAMED MAP {factors NAMED TENSOR, alpha? FLOAT}
 *          losses LIST of FLOAT, of each pass
 * "sampler/1" (SAMPLER): the way from noise to a latent.
 *     in   guider OBJECT GUIDER
 *          sigmas TENSOR [N], falling; the last may be 0
 *          latents TENSOR [B,C,H,W], what the noise is added to
 *          noise OBJECT NOISE
 *          noise_mask? TENSOR [*,*,*], as in a LATENT
 *          batch_index? LIST of INT, as in a LATENT
 *     out  latents TENSOR [B,C,*,*], of another size where a sampler lets them grow
 *          denoised TENSOR [B,C,*,*], the model's last x0
 * "sigmas/1" (MODEL): the noise levels of a schedule of this model.
 *     in   scheduler TEXT, "karras"
 *          steps INT
 *          denoise? FLOAT, 1 when absent
 *     out  sigmas TENSOR [N]
 * "guider/1" (GUIDER): x0 as a sampler asks for it, whatever models and conditions stand behind it.
 *     in   x TENSOR [B,C,H,W], x0 and noise of the deviation sigma
 *          sigma FLOAT
 *          latents? TENSOR [B,C,H,W], what the sampling began with, without noise: the same value in all calls
 *              of a sampling, as is the mask. The further channels of an inpainting U-Net are made of
 *              them where the condition brings none; zeros when absent
 *          noise_mask? TENSOR [*,*,*], as in a LATENT
 *          wants_unconditional? BOOL, whether unconditional is asked for (cfg_pp)
 *     out  denoised TENSOR [B,C,H,W]
 *          unconditional? TENSOR [B,C,H,W], without guidance; there when it is asked for
 * "noise/1" (NOISE): the noise of a picture.
 *     in   latents TENSOR [B,C,H,W], whose shape it takes
 *          batch_index? LIST of INT, which pictures of a larger batch these are
 *     out  noise TENSOR [B,C,H,W], of variance 1, or zeros
 *          seed? INT, what the noise of a sampler's steps is drawn from, as an unsigned number; 0 when absent
 * "describe/1": what the object is. Any object may offer it; a MODEL and a GUIDER do.
 *     out  description TEXT, a JSON object. "understands" has by interface the optional keys that the object
 *              makes use of, {"denoiser/1": ["residuals"]}. A MODEL, and a GUIDER as its model, gives
 *              "prediction" ("epsilon", "v_prediction", "sample", "edm"), "in_channels", "out_channels",
 *              "context_width", "train_steps" and "alphas_cumprod" (a list of that many numbers). It may give
 *              "timesteps", what "timestep" of "denoiser/1" is where it is no place in alphas_cumprod:
 *              {"factor": f, "offset": o}, f times the place plus o, or "quarter_log_sigma", ln(sigma) / 4;
 *              "consistency", true where x0 is c_out times what the prediction says plus c_skip times x, as LCM has
 *              them at ten times the timestep and a deviation of the data of 0.5; "reuse" {"of": "calls" or "guidance",
 *              "threshold", "start", "end", "told"?: bool}, whether a sampler may take, from the share start of the schedule to
 *              end, what was said before for what would be said (EasyCache, LazyCache); "differential" in 0..1, how much of a noise
 *              mask is, at each step, 1 where the mask is not below the share of the steps that are left, and 0
 *              elsewhere. "latent_mean" and "latent_std", a number
 *              for each channel: x is the autoencoder's latents less the mean, divided by the other. With "edm" x spreads by
 *              0.5, which "denoiser/1" sees at 1, and the prediction is the velocity of that with the other sign. One that
 *              understands "pooled" and "sizes" gives "pooled_width" and "sizes", how many. It may
 *              give "model_channels", the channels of a U-Net's outermost level, "latent_rgb", a list of [r,g,b] for each latent channel, and "latent_rgb_bias", [r,g,b]:
 *              what a picture of a latent is made with, in -1..1, "cross_attentions", the
 *              paths of its cross-attentions by diffusers' names, those of the contracting half first, then of
 *              the expanding half, then of the middle, and "preview_decoder", the name of a file
 *              that makes a better one (see "preview_file:NAME" of kg_context), and "scaling_factor", the "scale"
 *              of the LATENTs that it denoises. A VAE gives "latent_channels", "downscale" and "scaling_factor",
 *              the "scale" of what it decodes and gives. One that offers "weights/1" may give "unsaid", options
 *              of diffusers' configurations that no shape shows, where they are not the family's own, by the
 *              names of the parts: {"unet": {"norm_num_groups": 8}}. One that offers "memory/1" gives "bytes", what that will
 *              say when all of it is in memory.
 * "memory/1": what the object costs. Any object may offer it. Objects that share memory each count their part.
 *     in   purge BOOL, give back what can be had again
 *     out  bytes INT, held after that
 */

/* ---- Socket types --------------------------------------------------------------------------
 *
 * IMAGE          TENSOR f32 [B,H,W,C] in 0..1, C = 1, 3 or 4
 * MASK           TENSOR f32 [B,H,W] in 0..1
 * LATENT         MAP {"samples": TENSOR f32 [B,C,h,w], "noise_mask"?: TENSOR f32 [B,H,W] of any size (B
 *                may be 1), 1 where a sampler may change the samples and 0 where they stay,
 *                "batch_index"?: LIST of INT, which pictures of a larger batch these are, "scale"?: FLOAT, what
 *                the samples are the autoencoder's own latents times, …}; keys a node does not know it
 *                passes on. Where both say it, a sampler brings the samples to the scale of its MODEL, whose it
 *                is from then on, whoever decodes to that of the VAE, and a node of two latents the second to the
 *                first's; where one does not, they are taken to agree
 * CONDITIONING   LIST of MAP {"context": TENSOR f32 [1,T,D], "pooled"?: TENSOR f32 [1,D], …}, see
 *                below; keys a node does not know it passes on
 * CONTROL        MAP {"control_net": OBJECT, "hint": TENSOR f32 [B,H,W,3], "strength": FLOAT,
 *                "start": FLOAT, "end": FLOAT, "guess"?: BOOL, "previous"?: CONTROL}
 * IMAGE_TOKENS   TENSOR f32 [1,Q,D]
 * HIDDEN_STATES  MAP {"hidden_states": TENSOR f32 [1,T,D], "mask": TENSOR f32 [1,T]}
 * CLIP_VISION_OUTPUT   MAP {"last_hidden_state", "penultimate_hidden_states": TENSOR f32 [B,T,D],
 *                "image_embeds": TENSOR f32 [B,P]}
 * SIGMAS         TENSOR f32 [N], noise levels, falling
 * MODEL, CLIP, CLIP_VISION, VAE, CONTROL_NET, UPSCALE_MODEL, FEATURES, KOSMOS, IMAGE_ENCODER   OBJECT
 * SAMPLER, GUIDER, NOISE, GLIGEN, STYLE_MODEL, PHOTOMAKER, LATENT_OPERATION   OBJECT
 *
 * An entry of a CONDITIONING may say where, when and how much it counts. A sampler takes, for each latent
 * pixel, the mean over the entries that reach it, weighted by strength, by mask and, at the inner edges
 * of an area without mask, by a ramp over 8 latent pixels. Where none reaches, the picture is taken to be 0.
 *   "control"        LIST of CONTROL, which act together
 *   "control_covers_negative"   BOOL: entries of the negative that have no control take these
 *   "control_context" TENSOR f32 [1,T,D], what the controls read in the place of "context"
 *   "strength"       FLOAT, 1 when absent
 *   "area"           LIST of height, width, y, x: INT in latent pixels, or FLOAT in 0..1 of the picture
 *   "mask"           TENSOR f32 [B,H,W] of any size; "mask_strength" FLOAT, 1 when absent
 *   "area_from_mask" BOOL: the area is the smallest that holds the mask
 *   "start", "end"   FLOAT, where in the schedule it counts: 0 the noisiest, 1 the end; as in a CONTROL
 *   "concat_latent"  TENSOR f32 [B,C,h,w], "concat_mask" TENSOR f32 [B,H,W]: what the further input
 *                    channels of an inpainting U-Net (mask, latent) or of an edit U-Net (latent) take;
 *                    "concat_scale" FLOAT, the latent's "scale" as in a LATENT: when absent it is as the network
 *                    wants it
 *   "width", "height", "crop_w", "crop_h", "target_width", "target_height"   INT, in pixels: what a U-Net of
 *                    SDXL is told of the picture it stands for; the latents' size, uncropped, when absent
 *   "aesthetic_score"   FLOAT, what SDXL's refiner is told; 6 in a positive, 2.5 in a negative, when absent
 *   "unclip"         LIST of MAP {"image_embeds": TENSOR f32 [B,P], "strength": FLOAT, "noise_augmentation": FLOAT in
 *                    0..1}: pictures as CLIP sees them, which a sampler makes a pooled vector of, in the place of
 *                    "pooled"
 *   "grounding"      MAP {"gligen": OBJECT GLIGEN, "boxes": LIST of MAP, as in "grounding/1"}: the model has the
 *                    patches that it gives where this entry counts. Where no entry of the negative has one, those
 *                    without an area take the positive's
 *
 * Any other name is the library's own. Two sockets fit when their names are equal or one is "*"; an
 * input that takes several types names them with commas, "KOSMOS,IMAGE_ENCODER".
 */

/* ---- The call ------------------------------------------------------------------------------ */

typedef uint32_t kg_log_level;
#define KG_LOG_ERROR 1
#define KG_LOG_WARN 2
#define KG_LOG_INFO 3
#define KG_LOG_DEBUG 4

/* What the host lends to a call. All of its functions are [any], until the call returns that was given the
 * context; text and arrays that they are given are borrowed for the call and copied. */
typedef struct kg_context {
  uint32_t size;
  uint32_t reserved;

  /* One line for the person who runs the workflow. */
  void (*log)(const struct kg_context *self, kg_log_level level, kg_str message);

  /* `step` of `steps` are done. Returns nonzero when the work is to stop: return KG_CANCELLED
   * soon, with nothing left half-written. Call it at least once for each sampling step. With 0 of 0
   * it only asks, and nothing is shown: whatever takes longer than a second asks within it. */
  int32_t (*progress)(const struct kg_context *self, uint64_t step, uint64_t steps);

  /* Why this call fails: one sentence that says what is wrong and what would be right. `input`
   * is the name of the input at fault, or empty. The last call counts. */
  void (*fail)(const struct kg_context *self, kg_str input, kg_str sentence);

  /* Writes a thing the host knows, as text, to `value`; empty when it does not. The text lives until
   * the call returns. (Not the function's result: few languages can write callbacks that return a
   * struct.)
   *   "device"             "cpu" or "cuda:0": where to compute
   *   "tensors"            "anywhere" where who called looks where a tensor lies that it is given; else they
   *                        are to lie on the CPU
   *   "node"               the id of the node that runs
   *   "output_directory", "temp_directory"   absolute paths
   *   "prompt"             the workflow as it was run, API format
   *   "workflow"           the editor's own graph, where the file carried one
   *   "room:BYTES"         how many bytes this step may take beside what models and results hold, where there is a
   *                        budget (--memory-budget): ask before work that can be done in more memory or in less. For
   *                        so many BYTES the host first lets go of the models that the step does not use
   *   "file:FOLDER/NAME"   the absolute path of the file that a text of this node mentions as NAME, or that
   *                        a choice may need; see "mentions" and "files"
   *   "preview_file:NAME"  the absolute path of a file that shows latents better than colours do, "taesd_decoder"
   *                        or what the MODEL's "describe/1" calls "preview_decoder"; empty where it is not there
   *                        or nobody looks at previews. What a node gives may not depend on it. */
  void (*property)(const struct kg_context *self, kg_str name, kg_str *value);

  /* Something an output node made: a JSON object such as
   * {"images":[{"filename":"a_00001_.png","subfolder":"","type":"output"}]}.
   * {"making":{"filename":".a.tmp","subfolder":"","type":"output"}} is said before a file that was
   * written under a name with a dot is given its own: if the process ends before the file is told,
   * the host finds it and tells it, or removes it where it still has the temporary name.
   * {"sent":[{"filename":"a.png","subfolder":"","type":"temp"}]} names pictures for whoever asked for the run and
   * for nobody later: a host that such a client listens to sends them and removes the files. */
  void (*output)(const struct kg_context *self, kg_str json);

  /* Values allocated by the host, for authors who do not want to write their own. Each returns
   * one reference, or NULL when there is no memory. A list and a map retain what is put in. */
  kg_string *(*new_string)(const struct kg_context *self, kg_str text);
  kg_list *(*new_list)(const struct kg_context *self, const kg_value *items, size_t count);
  kg_map *(*new_map)(const struct kg_context *self, const kg_str *keys, const kg_value *values,
                     size_t count);
  /* Zeroed, compact, on the CPU: fill dl->dl_tensor.data before handing it over. */
  kg_tensor *(*new_tensor)(const struct kg_context *self, DLDataType dtype, int32_t ndim,
                           const int64_t *shape);

  /* What this host can do beyond that, by a name with a revision; NULL when it cannot, or nobody wants it
   * done. The interface is called with a NULL object and the context that gave it, while the call lasts [any].
   *   "preview/1"  shows what a step has made so far. Where nobody looks it is NULL, so ask first.
   *     in   step INT, of the steps that are done
   *          steps INT
   *          latents? TENSOR [B,C,H,W], x0 of the step, with what makes a picture of it:
   *          rgb? TENSOR [C,3], "latent_rgb" of the MODEL's "describe/1"
   *          bias? TENSOR [3], its "latent_rgb_bias"
   *          image? TENSOR [*,*,*,3] in 0..1, from a library that has a better picture, instead of these */
  const kg_interface *(*extension)(const struct kg_context *self, kg_str name);
} kg_context;

/* ---- Reading tensors, reading and building maps, for authors in C --------------------------- */

/* The tensor in the CPU's memory, borrowed for as long as a reference is held; NULL where its library
 * gives no view of it there. */
static inline const DLTensor *kg_tensor_cpu(kg_tensor *tensor) {
  const DLTensor *here = &tensor->dl->dl_tensor;
  if (here->device.device_type == kDLCPU) return here;
  if (tensor->base.size < sizeof(kg_tensor) || tensor->view == NULL) return NULL;
  return tensor->view(tensor, kDLCPU, 0);
}

/* The value under a key; NULL where there is none, or nothing in it. */
static inline const kg_value *kg_map_get(const kg_map *map, const char *key) {
  size_t length = 0;
  while (key[length] != 0) length++;
  for (size_t i = 0; i < map->count; i++) {
    size_t same = 0;
    if (map->keys[i].len != length) continue;
    while (same < length && map->keys[i].ptr[same] == key[same]) same++;
    if (same == length) return map->values[i].kind == KG_NONE ? NULL : &map->values[i];
  }
  return NULL;
}

/* Writes a map of one key to `output`, and lets go of `value`, which the map retains. */
static inline kg_status kg_map_give(const kg_context *context, const char *key, kg_value value,
                                    kg_map **output) {
  kg_str name = {key, 0};
  while (key[name.len] != 0) name.len++;
  *output = context->new_map(context, &name, &value, 1);
  if (value.kind >= KG_STRING && value.as.counted != NULL) value.as.counted->release(value.as.counted);
  return *output != NULL ? KG_OK : KG_ERROR;
}

/* ---- The library --------------------------------------------------------------------------- */

typedef struct kg_library {
  uint32_t size;
  uint16_t abi_major; /* KG_ABI_MAJOR */
  uint16_t abi_minor; /* KG_ABI_MINOR */

  /* What the library is, as JSON; see "Descriptor". */
  kg_str descriptor;

  /* Runs node number `node` of the descriptor [call]. All arguments are borrowed for the call, what is
   * written to `outputs` carries a reference each. `inputs` are in the descriptor's order, KG_NONE for
   * an optional one that is absent; `outputs` arrive as KG_NONE. On KG_ERROR and KG_CANCELLED the
   * host releases whatever was written to `outputs`. A library checks what it is given: wrong
   * kinds, shapes and ranges are errors, not undefined behaviour. */
  kg_status (*run)(uint32_t node, const kg_context *context, const kg_value *inputs,
                   size_t n_inputs, kg_value *outputs, size_t n_outputs);

  /* Optional features by name, or NULL [any]; what it gives lives as long as the process. May be NULL
   * itself. Each of these is a kg_interface whose self is NULL, and whose call is a [call].
   *   "panic/1"   panics inside, for the conformance test: it must come back as KG_ERROR
   *   "convert/1" makes of a file what the library's nodes, or other programs, read; what `kosmograph
   *               convert` calls.
   *     in   input TEXT, the file's absolute path
   *          output TEXT, an absolute path where nothing is yet
   *          options TEXT, a JSON object: "tokenizer", a folder's absolute path
   *     out  made? TEXT, a JSON object: "kind" (what it made), "output" (its path), "tensors" (how
   *              many), "notes" (a list of sentences); absent when the input is of no kind that the
   *              library converts. The file appears when it is whole, or not at all.
   *   "train/1"   trains a model of the library's kind; what `kosmograph train` calls.
   *     in   config TEXT, a JSON object, the library's own configuration
   *          folder TEXT, the absolute path of the folder where its relative paths begin
   *     out  made? TEXT, a JSON object: "output" (the path of what was made), "updates" (how many there were);
   *              absent when another library is to do what the configuration asks for
   *          declined? TEXT, the sentence that a person reads then if no library does it. On the way it reports
   *              progress, an update each step, and to `output` of the context what an update came to:
   *              {"training": {"update", "updates", "loss", "seconds", "seconds_left", ...}}, or {"files": [paths]}
   *              of what was made besides. When it is to stop it writes its state down first, and the same call
   *              goes on from there.
   *   "evaluate/1" measures pictures; what `kosmograph evaluate` calls.
   *     in   request TEXT, a JSON object with absolute paths: "drawn" and "real" (folders), "measures" (the path of a
   *              network by the name of each measure), "inputs"? (a JSON file, the real picture of each subject
   *              that was drawn from), "sheet"? (a PNG file to make of the best and the worst)
   *     out  made TEXT, a JSON object: "table" ({"columns", "rows"}, for a person), "all" (each figure of all
   *              pictures by name), "subjects" and "pictures" (lists of the same), "left_out" (a list of sentences),
   *              "output"? (the sheet's path). On the way it reports progress.
   *   "check/1"   looks at a plan before anything runs, reading no more than the files' headers:
   *               `kosmograph check` calls it where the descriptor says "checks".
   *     in   plan TEXT, a JSON object: "steps", a list in the order of the plan, of {"class", "inputs"};
   *              "inputs" has by name {"value": ...}, {"file": path}, {"from": [step, output]}, each
   *              beside "files", {name: path}, where a text mentions some
   *     out  problems TEXT, a JSON list of {"step", "input", "message", "refused"?}: what is going to be left
   *              out or is otherwise odd, each a warning, or with "refused" true what cannot but fail */
  const void *(*extension)(kg_str id);
} kg_library;

/* Called once, when the library is opened; the struct lives as long as the process. */
typedef const kg_library *(*kg_library_fn)(void);

/* What a library defines. Declared here so that it has C linkage in C++ and is exported whatever the
 * compiler's default visibility is. */
#if defined(__GNUC__)
#define KG_EXPORT __attribute__((visibility("default")))
#else
#define KG_EXPORT
#endif
KG_EXPORT const kg_library *kosmograph_library_v1(void);

/* ---- Descriptor ----------------------------------------------------------------------------
 *
 * {"name": "image", "version": "0.1.0",
 *  "nodes": [
 *    {"class": "ImageInvert", "doc": "Inverts an image.", "category": "image",
 *     "inputs": [
 *       {"name": "image", "type": "IMAGE"},
 *       {"name": "strength", "type": "FLOAT", "default": 1.0, "min": 0.0, "max": 1.0, "step": 0.01}],
 *     "outputs": [{"name": "image", "type": "IMAGE"}],
 *     "pure": true, "output_node": false}]}
 *
 * "checks" (false), beside "nodes", says that the library has "check/1".
 * Input: "name", "type"; "optional" (false), "doc", and for widgets "default", "min", "max", "step",
 *   "choices" (type COMBO: a list of strings), "multiline".
 *   Types of widgets: INT (KG_INT), FLOAT (KG_FLOAT), STRING and COMBO (KG_STRING), BOOLEAN (KG_BOOL).
 *   A "max" of an INT above 2^63 - 1 makes the input unsigned: read as.natural.
 *   "mentions"      of a STRING: a folder, "embeddings", whose files the text may name in passing, by
 *                   the folder's name without its s: "a cat, embedding:NAME". The host looks for NAME
 *                   (it ends at white space; before one of , : ; ( ) [ ] { } < > | " a shorter one may
 *                   be meant; .safetensors, .pt or .bin may be left out) in the text as it stands in
 *                   the workflow, puts the files' identity into the cache key, and gives their paths as
 *                   properties. A name that is not there is a warning.
 *   "files"         of a COMBO: by choice a list of files that it may need, "FOLDER/NAME" without the
 *                   extension. The host looks for them when the choice is made, puts the identity of those
 *                   that are there into the cache key, and gives their paths as properties.
 *   "role": "seed"  what --seed sets
 *           "path"  the value is a file's name; "folder" says where it is looked for ("checkpoints",
 *                   "input", …) and "entry" what it is ("file", "directory", "any"). The node receives
 *                   the absolute path, and the file's identity is part of the cache key. An optional
 *                   one may have "none", a word that stands for no file: then the input is absent.
 *                   "extensions", ["latent"], are those of the files that are offered, where they are
 *                   not the ones that the folder has else: pictures of "input", models elsewhere.
 *           "prefix" of a STRING: the value begins the names of the files that the node writes in the
 *                   folder that its "writes" names, PREFIX_00001_.png or the like. It may name folders
 *                   in there and hold %width%, %height%, %year%, %month%, %day%, %hour%, %minute%,
 *                   %second%, %batch_num% and %date:yyyy-MM-dd%, which the node replaces. The host
 *                   refuses one that leads out of the folder or is too long for a file's name before
 *                   anything runs.
 * Output: "name", "type"; "is_list" (false) that a KG_LIST of any number of values of that type is written
 *   there. A node behind it that does not take lists runs once for each value, in their order, a shorter
 *   list's last value again and again, and what it gives is a list as well.
 * Node: "pure" (true) says that equal inputs give equal outputs, so that the host may keep them;
 *   "output_node" (false) that it is run for what it does outside the graph; "writes" ("output" or
 *   "temp") that it writes files into the folder of the property output_directory or
 *   temp_directory, so that the host can say that it cannot be written before anything runs.
 *   "checked" (false) that running it takes no longer than reading a file's header, or a picture or a small
 *                   file whole, as a loader does that reads weights when they are first used:
 *                   `kosmograph check` runs it, where all that it is linked to is such a node too, and
 *                   what it fails with is told before anything else is computed.
 *   "input_is_list" (false) of a node: each input that is there arrives as a KG_LIST, of one value where
 *                   the workflow gives one, and the node runs once for all of them.
 *   "memory"        a list of numbers and names of INT or FLOAT inputs, [0.25, "width", "height",
 *                   "batch_size"]: their product is how many bytes the results take at least. The
 *                   host compares it with what there is: where the numbers stand in the workflow
 *                   when it is checked, else before the node runs. What cannot be said so, a
 *                   library asks for itself, and fails with a sentence.
 *   "replaces"      a list of classes that are gone and whose work the node does, where no library has
 *                   them: {"class": "Old", "inputs": {NEW: OLD}, "values": {NEW: VALUE}, "outputs": [OLD
 *                   NUMBER for each output], "widgets": [the old names in their order, as the editor saves
 *                   values]}. All but "class" may be left out: what is not named is called the same. With
 *                   "when": {OLD: TEXT} it does so for nodes at whose inputs these texts stand, and these
 *                   alone, and even where a library has the class: there the texts are further choices.
 */

/* ---- What must be equal on both sides (64-bit targets) --------------------------------------- */

#if defined(__cplusplus)
#define KG_ASSERT(what) static_assert(what, #what)
#else
#define KG_ASSERT(what) _Static_assert(what, #what)
#endif
KG_ASSERT(sizeof(void *) == 8);
KG_ASSERT(sizeof(kg_str) == 16);
KG_ASSERT(sizeof(kg_counted) == 24 && offsetof(kg_counted, retain) == 8);
KG_ASSERT(sizeof(kg_value) == 16 && offsetof(kg_value, as) == 8);
KG_ASSERT(sizeof(kg_string) == 40 && offsetof(kg_string, text) == 24);
KG_ASSERT(sizeof(kg_list) == 40 && offsetof(kg_list, count) == 32);
KG_ASSERT(sizeof(kg_map) == 48 && offsetof(kg_map, count) == 40);
KG_ASSERT(sizeof(kg_tensor) == 48 && offsetof(kg_tensor, to_dlpack) == 32 &&
          offsetof(kg_tensor, view) == 40);
KG_ASSERT(sizeof(kg_interface) == 24 && offsetof(kg_interface, flags) == 16);
KG_ASSERT(sizeof(kg_object) == 48 && offsetof(kg_object, query) == 40);
KG_ASSERT(sizeof(kg_context) == 88 && offsetof(kg_context, property) == 32 &&
          offsetof(kg_context, extension) == 80);
KG_ASSERT(sizeof(kg_library) == 40 && offsetof(kg_library, run) == 24);
KG_ASSERT(sizeof(DLTensor) == 48 && offsetof(DLTensor, byte_offset) == 40);
KG_ASSERT(sizeof(DLManagedTensorVersioned) == 80 &&
          offsetof(DLManagedTensorVersioned, dl_tensor) == 32);

#ifdef __cplusplus
}
#endif

#endif /* KG_NODE_H */
