/* Owns the table of tokenizer.ggml.pre: name -> how a text is cut. The patterns are those of the models' own tokenizer.json (for Kimi K2 of its
 * tiktoken file), the names and what else belongs to them are llama.cpp's.
 * Threads: pure.
 * Rule: pieces are cut by the patterns one after the other, as a Sequence of Split does; a name that is not here is refused. */
#include <string.h>

#include "models/text/tokenizer_gguf_private.h"

#define GPT2_WORDS "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"
#define BLANK "[\\x09-\\x0d\\x20\\x85\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]" /* \s; in a pattern without classes (pattern.h) */
#define BLANKS "\\s+(?!\\S)|\\s+"
#define LINES_AND_BLANKS "\\s*[\\r\\n]+|" BLANKS
#define CONTRACTIONS "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
#define WORD_START "[^\\r\\n\\p{L}\\p{N}]?"
#define UPPER "\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}"
#define LOWER "\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}"
#define OTHERS " ?[^\\s\\p{L}\\p{N}]+"
/* Words of any case, then numbers of up to n digits and the rest. */
#define LLAMA_WORDS(n) CONTRACTIONS "|" WORD_START "\\p{L}+|\\p{N}{1," n "}|" OTHERS "[\\r\\n]*|" LINES_AND_BLANKS
/* Words are cut before a capital letter; `end` may follow a word. */
#define CASED_WORDS(end) WORD_START "[" UPPER "]*[" LOWER "]+" end "|" WORD_START "[" UPPER "]+[" LOWER "]*" end
#define KANJI_KANA "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
#define DEEPSEEK_WORDS "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\\r\\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\\r\\n]*|" LINES_AND_BLANKS
/* deepseek-llm: letters that have cases, signs of ASCII and of Chinese, and the rest of the scripts it cuts out. */
#define CASED_LETTERS \
    "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373\u0376\u0377\u037b-\u037d" \
    "\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-" \
    "\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-" \
    "\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-" \
    "\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139" \
    "\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b\ua722-" \
    "\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f\U000104b0-" \
    "\U000104d3\U000104d8-\U000104fb\U00010c80-\U00010cb2\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943"
#define SIGNS "!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002"
#define ASIAN "\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff"
/* \p{Han}, which PCRE2's older tables know less of. */
#define HAN \
    "\u2e80-\u2e99\u2e9b-\u2ef3\u2f00-\u2fd5\u3005\u3007\u3021-\u3029\u3038-\u303b\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufa6d\ufa70-\ufad9" \
    "\U00016fe2-\U00016fe3\U00016ff0-\U00016ff1\U00020000-\U0002a6df\U0002a700-\U0002b739\U0002b740-\U0002b81d\U0002b820-\U0002cea1" \
    "\U0002ceb0-\U0002ebe0\U0002ebf0-\U0002ee5d\U0002f800-\U0002fa1d\U00030000-\U0003134a\U00031350-\U000323af"
/* No Han character; the letters are tested one by one, as an intersection of classes. */
#define NOT_HAN "(?![" HAN "])"
#define KIMI_UPPER "(?:" NOT_HAN "[" UPPER "])"
#define KIMI_LOWER "(?:" NOT_HAN "[" LOWER "])"
#define KIMI_WORDS \
    "[" HAN "]+|" WORD_START KIMI_UPPER "*" KIMI_LOWER "+" CONTRACTIONS "?|" WORD_START KIMI_UPPER "+" KIMI_LOWER "*" CONTRACTIONS \
    "?|\\p{N}{1,3}|" OTHERS "[\\r\\n]*|" LINES_AND_BLANKS

static const pre_kind kinds[] = {
    {"gpt-2 phi-2 exaone4", {GPT2_WORDS}, false, false, false},
    {"olmo mpt", {GPT2_WORDS}, true, false, false},
    {"smollm starcoder refact codeshell exaone minerva-7b", {"\\p{N}", GPT2_WORDS}, false, false, false},
    {"command-r", {"\\p{N}", GPT2_WORDS}, true, false, false},
    {"qwen2 megrez", {LLAMA_WORDS("1")}, true, false, false},
    {"deepseek-r1-qwen stablelm2 hunyuan solar-open grok-2", {LLAMA_WORDS("1")}, false, false, false},
    {"llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2", {LLAMA_WORDS("3")}, false, true, true},
    {"dbrx smaug-bpe chatglm-bpe", {LLAMA_WORDS("3")}, false, false, false},
    {"glm4 glm5", {LLAMA_WORDS("3")}, false, true, false},
    {"deepseek-llm", {"[\\r\\n]", BLANK "?[" CASED_LETTERS "]+", BLANK "?[" SIGNS "]+", "\\s+$", "[" ASIAN "]+", "\\p{N}+"}, false, false, false},
    {"deepseek-coder", {"[\\r\\n]", "\\s?\\p{L}+", "\\s?\\p{P}+", "[" ASIAN "]+", "\\p{N}"}, false, false, false},
    {"deepseek-v3 hunyuan-dense joyai-llm", {"\\p{N}{1,3}", KANJI_KANA, DEEPSEEK_WORDS}, false, false, false},
    {"kimi-k2", {KIMI_WORDS}, false, false, false},
    {"gpt-4o llama4 kanana2", {CASED_WORDS(CONTRACTIONS "?") "|\\p{N}{1,3}|" OTHERS "[\\r\\n/]*|" LINES_AND_BLANKS}, false, true, false},
    {"minimax-m2", {CASED_WORDS(CONTRACTIONS "?") "|\\p{N}{1,3}|" OTHERS "[\\r\\n/]*|" LINES_AND_BLANKS}, false, false, false},
    {"tekken", {CASED_WORDS("") "|\\p{N}|" OTHERS "[\\r\\n/]*|" LINES_AND_BLANKS}, false, true, true},
    {"bailingmoe bailingmoe2 llada-moe", {CONTRACTIONS "|" WORD_START "\\p{L}+|\\p{N}|" OTHERS "[\\r\\n]*|\\s*[\\r\\n]|" BLANKS}, false, false, false},
    {"seed-coder", {CONTRACTIONS "|" WORD_START "\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}\\r\\n]+|" LINES_AND_BLANKS}, false, false, false},
};

enum { KINDS = sizeof kinds / sizeof *kinds };

/* Is name one of the words of list? */
static bool is_in(const char *list, const char *name, size_t n)
{
    for (const char *at = list; *at != '\0';) {
        const size_t word = strcspn(at, " ");
        if (word == n && memcmp(at, name, n) == 0)
            return true;
        at += word + (at[word] == ' ');
    }
    return false;
}

moe_err tokenizer_gguf_pre(const gguf *g, const pre_kind **out)
{
    const char *name;
    size_t n;
    text_buf known = {0};
    *out = NULL;
    TRY(gguf_get_string(g, "tokenizer.ggml.pre", &name, &n));
    for (int i = 0; i < KINDS; i++) {
        if (is_in(kinds[i].names, name, n))
            *out = &kinds[i];
        text_printf(&known, "%s%s", i ? " " : "", kinds[i].names);
    }
    const moe_err rc = *out != NULL ? MOE_OK
                                    : moe_fail(MOE_E_DATA, "%s: tokenizer.ggml.pre is \"%.*s\": expected one of %s", gguf_path(g, 0),
                                               n < 64 ? (int)n : 64, name, known.failed ? "those known" : known.data);
    text_free(&known);
    return rc;
}
