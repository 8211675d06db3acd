// Command interop reads and writes logs with the implementations of others: golang.org/x/mod/sumdb (tlog, note),
// Tessera's fsck, the formats of transparency-dev, and go-cose.
//
//	interop check DIR INDEXES OLDS VKEY...   verify DIR/checkpoint, tiles, bundles and *.tlog-proof; print proofs
//	interop write DIR COUNT SKEY...          write a log of COUNT entries and DIR/write.tlog-proof
//	interop cose FILE VKEY ROOT              verify a COSE receipt over the root (hex); print what it says
//	interop fsck URL VKEY                    read a whole log that is served, derive it anew and compare
//
// The first key is the log's Ed25519 key. INDEXES and OLDS are numbers with commas between them. What is printed is JSON.
package main

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/fxamacker/cbor/v2"
	fnote "github.com/transparency-dev/formats/note"
	"github.com/transparency-dev/formats/proof"
	"github.com/transparency-dev/tessera/api"
	"github.com/transparency-dev/tessera/client"
	"github.com/transparency-dev/tessera/fsck"
	"github.com/veraison/go-cose"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

func main() {
	log.SetFlags(0)
	log.SetPrefix("interop: ")
	var result any
	switch os.Args[1] {
	case "check":
		result = check(os.Args[2], numbers(os.Args[3]), numbers(os.Args[4]), os.Args[5:])
	case "write":
		result = write(os.Args[2], numbers(os.Args[3])[0], os.Args[4:])
	case "fsck":
		result = served(os.Args[2], verifiersOf(os.Args[3:])[0])
	case "cose":
		result = receipt(os.Args[2], os.Args[3], os.Args[4])
	default:
		log.Fatalf("%s?", os.Args[1])
	}
	must(json.NewEncoder(os.Stdout).Encode(result))
}

// inclusion is an inclusion proof of RFC 9942, which go-cose does not know.
type inclusion struct {
	_     struct{} `cbor:",toarray"`
	Size  int64
	Index int64
	Path  [][]byte
}

func receipt(file, vkey, root string) inclusion {
	var message cose.Sign1Message
	must(message.UnmarshalCBOR(got(os.ReadFile(file))))
	if message.Payload != nil || message.Headers.Protected[int64(395)] != int64(1) {
		log.Fatalf("payload %v, headers %v", message.Payload, message.Headers.Protected)
	}
	key := got(base64.StdEncoding.DecodeString(strings.SplitN(vkey, "+", 3)[2]))
	verifier := got(cose.NewVerifier(cose.AlgorithmEdDSA, ed25519.PublicKey(key[1:])))
	message.Payload = got(hex.DecodeString(root))
	must(message.Verify(nil, verifier))
	proofs := message.Headers.Unprotected[int64(396)].(map[any]any)[int64(-1)].([]any)
	var found inclusion
	must(cbor.Unmarshal(proofs[0].([]byte), &found))
	return found
}

type checked struct {
	Size        int64
	Root        tlog.Hash
	Keys        []string // of the verified signatures
	Proofs      []string // names of the .tlog-proof files
	Inclusion   []tlog.RecordProof
	Consistency []tlog.TreeProof
}

func check(dir string, indexes, olds []int64, vkeys []string) checked {
	verifiers := verifiersOf(vkeys)
	raw := got(os.ReadFile(filepath.Join(dir, "checkpoint")))
	opened := got(note.Open(raw, note.VerifierList(verifiers...)))
	tree, origin := treeOf(opened.Text)
	result := checked{Size: tree.N, Root: tree.Hash}
	for _, signature := range opened.Sigs {
		result.Keys = append(result.Keys, fmt.Sprintf("%s+%08x", signature.Name, signature.Hash))
	}

	ctx := context.Background()
	files := client.FileFetcher{Root: dir}
	must(fsck.New(origin, verifiers[0], files, leafHashes, fsck.Opts{N: 2}).Check(ctx))

	// TileHashReader checks each tile that it is given against the root.
	reader := tlog.TileHashReader(tree, tiles{dir})
	for _, index := range indexes {
		made := got(tlog.ProveRecord(tree.N, index, reader))
		must(tlog.CheckRecord(made, tree.N, tree.Hash, index, tlog.RecordHash(entry(dir, index, tree.N))))
		result.Inclusion = append(result.Inclusion, made)
	}
	for _, old := range olds {
		made := got(tlog.ProveTree(tree.N, old, reader))
		must(tlog.CheckTree(made, tree.N, tree.Hash, old, got(tlog.TreeHash(old, reader))))
		result.Consistency = append(result.Consistency, made)
	}

	for _, name := range got(filepath.Glob(filepath.Join(dir, "*.tlog-proof"))) {
		checkProof(dir, got(os.ReadFile(name)), verifiers)
		result.Proofs = append(result.Proofs, filepath.Base(name))
	}
	return result
}

func served(prefix string, verifier note.Verifier) written {
	ctx := context.Background()
	fetcher := got(client.NewHTTPFetcher(got(url.Parse(prefix)), nil))
	must(fsck.New(verifier.Name(), verifier, fetcher, leafHashes, fsck.Opts{N: 2}).Check(ctx))
	opened := got(note.Open(got(fetcher.ReadCheckpoint(ctx)), note.VerifierList(verifier)))
	tree, _ := treeOf(opened.Text)
	return written{tree.N, tree.Hash}
}

func checkProof(dir string, raw []byte, verifiers []note.Verifier) {
	var found proof.TLogProof
	must(found.Unmarshal(raw))
	if !bytes.Equal(found.Marshal(), raw) {
		log.Fatal("the proof is written otherwise here")
	}
	tree, _ := treeOf(got(note.Open(found.Checkpoint, note.VerifierList(verifiers...))).Text)
	var hashes tlog.RecordProof
	for _, one := range found.Hashes {
		hashes = append(hashes, one)
	}
	index := int64(found.Index)
	must(tlog.CheckRecord(hashes, tree.N, tree.Hash, index, tlog.RecordHash(entry(dir, index, tree.N))))
}

type written struct {
	Size int64
	Root tlog.Hash
}

func write(dir string, count int64, skeys []string) written {
	var stored []tlog.Hash
	reader := tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) {
		hashes := make([]tlog.Hash, len(indexes))
		for place, index := range indexes {
			hashes[place] = stored[index]
		}
		return hashes, nil
	})
	var bundle bytes.Buffer
	for n := range count {
		text := fmt.Appendf(nil, "entry %d", n)
		stored = append(stored, got(tlog.StoredHashes(n, text, reader))...)
		bundle.Write([]byte{byte(len(text) >> 8), byte(len(text))})
		bundle.Write(text)
		if width := n%256 + 1; width == 256 || n == count-1 {
			save(dir, path(tlog.Tile{H: 8, L: -1, N: n / 256, W: int(width)}), bundle.Bytes())
			bundle.Reset()
		}
	}
	for _, tile := range tlog.NewTiles(8, 0, count) {
		save(dir, path(tile), got(tlog.ReadTileData(tile, reader)))
	}
	root := got(tlog.TreeHash(count, reader))
	var signers []note.Signer
	for _, skey := range skeys {
		if signer, err := note.NewSigner(skey); err == nil {
			signers = append(signers, signer)
		} else {
			signers = append(signers, got(fnote.NewSignerForCosignatureV1(skey)))
		}
	}
	text := fmt.Sprintf("%s\n%d\n%s\n", signers[0].Name(), count, root)
	signed := got(note.Sign(&note.Note{Text: text}, signers...))
	save(dir, "checkpoint", signed)

	made := proof.TLogProof{Index: uint64(count / 2), Checkpoint: signed, ExtraData: []byte("extra")}
	for _, one := range got(tlog.ProveRecord(count, count/2, reader)) {
		made.Hashes = append(made.Hashes, one)
	}
	save(dir, "write.tlog-proof", made.Marshal())
	return written{count, root}
}

// tiles are those of a directory, at the paths of C2SP tlog-tiles.
type tiles struct{ dir string }

func (t tiles) Height() int                     { return 8 }
func (t tiles) SaveTiles([]tlog.Tile, [][]byte) {}
func (t tiles) ReadTiles(wanted []tlog.Tile) ([][]byte, error) {
	var found [][]byte
	for _, tile := range wanted {
		data, err := os.ReadFile(filepath.Join(t.dir, path(tile)))
		if err != nil {
			return nil, err
		}
		found = append(found, data)
	}
	return found, nil
}

// path is that of C2SP, which has no height and says "entries" where the checksum database says "data".
func path(tile tlog.Tile) string {
	return strings.Replace(strings.Replace(tile.Path(), "tile/8/", "tile/", 1), "tile/data/", "tile/entries/", 1)
}

func entry(dir string, index, size int64) []byte {
	width := 256
	if index/256 == size/256 {
		width = int(size % 256)
	}
	var bundle api.EntryBundle
	must(bundle.UnmarshalText(got(os.ReadFile(filepath.Join(dir, path(tlog.Tile{H: 8, L: -1, N: index / 256, W: width}))))))
	return bundle.Entries[index%256]
}

func leafHashes(data []byte) ([][]byte, error) {
	var bundle api.EntryBundle
	if err := bundle.UnmarshalText(data); err != nil {
		return nil, err
	}
	var hashes [][]byte
	for _, one := range bundle.Entries {
		hash := tlog.RecordHash(one)
		hashes = append(hashes, hash[:])
	}
	return hashes, nil
}

func treeOf(text string) (tlog.Tree, string) {
	lines := strings.Split(text, "\n")
	if len(lines) != 4 || lines[3] != "" {
		log.Fatal("the checkpoint has another number of lines")
	}
	return tlog.Tree{N: numbers(lines[1])[0], Hash: tlog.Hash(got(base64.StdEncoding.DecodeString(lines[2])))}, lines[0]
}

func verifiersOf(vkeys []string) []note.Verifier {
	var verifiers []note.Verifier
	for _, vkey := range vkeys {
		if verifier, err := note.NewVerifier(vkey); err == nil {
			verifiers = append(verifiers, verifier)
		} else {
			verifiers = append(verifiers, got(fnote.NewVerifierForCosignatureV1(vkey)))
		}
	}
	return verifiers
}

func numbers(text string) []int64 {
	var found []int64
	for part := range strings.SplitSeq(text, ",") {
		found = append(found, got(strconv.ParseInt(part, 10, 64)))
	}
	return found
}

func save(dir, name string, data []byte) {
	whole := filepath.Join(dir, name)
	must(os.MkdirAll(filepath.Dir(whole), 0o755))
	must(os.WriteFile(whole, data, 0o644))
}

func got[T any](value T, err error) T {
	must(err)
	return value
}

func must(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
