// What Kubernetes' own readers and writers make of bodies: a line on standard input is a word and base64, its answer a
// line of base64, or "!" where they do not read it.
//
//	object JSON   the object in CBOR
//	cbor CBOR     the object in JSON
//	yaml YAML     the object in JSON
package main

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"log"
	"os"
	"strings"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/serializer/cbor"
	"k8s.io/apimachinery/pkg/runtime/serializer/cbor/direct"
	"k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/yaml"
)

const longest = 16 << 20

// encoded writes a typed object where its kind is known, as client-go's typed clients do, else an unstructured one.
func encoded(raw []byte) ([]byte, error) {
	object, _, err := scheme.Codecs.UniversalDeserializer().Decode(raw, nil, nil)
	if err != nil {
		found := &unstructured.Unstructured{}
		if err := found.UnmarshalJSON(raw); err != nil {
			return nil, err
		}
		object = found
	}
	var out bytes.Buffer
	err = cbor.NewSerializer(scheme.Scheme, scheme.Scheme).Encode(object, &out)
	return out.Bytes(), err
}

func answer(word string, raw []byte) ([]byte, error) {
	switch word {
	case "object":
		return encoded(raw)
	case "cbor":
		var found map[string]any
		if err := direct.Unmarshal(raw, &found); err != nil {
			return nil, err
		}
		return json.Marshal(found)
	case "yaml":
		return yaml.YAMLToJSON(raw)
	}
	return nil, fmt.Errorf("%q is no word", word)
}

func main() {
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, longest)
	for lines.Scan() {
		word, text, _ := strings.Cut(lines.Text(), " ")
		raw, err := base64.StdEncoding.DecodeString(text)
		if err != nil {
			log.Fatal(err)
		}
		if found, err := answer(word, raw); err != nil {
			fmt.Println("!")
		} else {
			fmt.Println(base64.StdEncoding.EncodeToString(found))
		}
	}
}
